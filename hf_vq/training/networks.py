"""The networks that a run trains, each with its optimizer and schedule."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_vq.training.arguments import BaseTrainingArguments
from hf_vq.training.checkpoints import list_checkpoints
from hf_vq.training.optimization import build_schedule, learning_rate_factor

MODEL = "model"
"""The name of the model itself; a discriminator, for example, has another."""
_OPTIONS = ("initial_lr", "betas", "eps", "weight_decay")  # of a group of an optimizer, as the settings say them


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""

    def __init__(self, step: int, losses: Tensor, output_dir: Path) -> None:
        checkpoints = list_checkpoints(output_dir)
        last = f"The last good checkpoint is '{checkpoints[-1]}'" if checkpoints else "There is no checkpoint yet"
        super().__init__(
            f"The loss or its gradient is NaN or infinite in step {step} (loss on this process: {losses.tolist()}). "
            f"Training stopped before the optimizer's step, and nothing was overwritten. {last}. "
            "A smaller learning_rate, a longer warm-up, or mixed_precision=no usually mends it."
        )


class TrainedNetworks:
    """Networks by name. Each has its own AdamW and schedule, and is wrapped once for the processes of the run.

    Args:
        accelerator: Knows the device and the processes.
        args: The settings of the optimizers.
    """

    def __init__(self, accelerator: Accelerator, args: BaseTrainingArguments) -> None:
        self.accelerator = accelerator
        self.args = args
        self.memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
        self.modules: dict[str, nn.Module] = {}
        self.wrapped: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.schedules: dict[str, torch.optim.lr_scheduler.LambdaLR] = {}
        self.signum = 0  # the signal that any rank was told to stop with, as of the last step

    def place(self, network: nn.Module) -> None:
        """Moves a network to the device of this process, in the memory layout of the run."""
        network.to(self.accelerator.device)
        nn.Module.to(network, memory_format=self.memory_format)  # type: ignore[call-overload]

    def add(self, name: str, network: nn.Module, groups: list[dict[str, Any]], learning_rate: float) -> None:
        """Takes in a network, with the parameter groups and the peak learning rate of its optimizer."""
        args = self.args
        self.place(network)
        optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
        )
        self.modules[name] = network
        self.optimizers[name] = optimizer
        self.schedules[name] = build_schedule(optimizer, args)
        # The optimizers stay unwrapped: Accelerate would update the fp16 loss scale once for each of them.
        self.wrapped[name] = self.accelerator.prepare_model(network)

    def train(self) -> None:
        """Puts all networks into training mode."""
        for network in self.wrapped.values():
            network.train()

    def gradients_shared(self, name: str, shared: bool) -> AbstractContextManager[Any]:
        """Leaves out the exchange of a network's gradients, unless `shared`: in all but a step's last micro batch."""
        return nullcontext() if shared else self.accelerator.no_sync(self.wrapped[name])

    def clip_gradients(self, names: list[str]) -> dict[str, Tensor]:
        """Clips the complete gradients of some networks, and returns their norms from before."""
        norms = {}
        for name in names:
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.unscale_(self.optimizers[name])
            parameters = [weight for group in self.optimizers[name].param_groups for weight in group["params"]]
            norms[name] = nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm or float("inf"))
        return norms

    def are_finite(self, losses: Tensor, norms: dict[str, Tensor], signum: int = 0) -> bool:
        """Whether losses and norms of gradients are finite, on all ranks; one rank must not stop alone.

        The signal `signum` that this rank was told to stop with, 0 if none, goes the same way: `signum` is that of any
        rank afterwards.
        """
        bad = (~torch.isfinite(losses)).any().float()
        self.signum = signum
        if self.accelerator.num_processes > 1:
            told = torch.stack([bad, bad.new_full((), signum)])
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            bad, self.signum = told[0], int(told[1])
        if self.accelerator.scaler is None:  # with loss scaling an infinite gradient is ordinary: the step is skipped
            bad = bad + (~torch.isfinite(torch.stack(list(norms.values())))).any()  # equal on all ranks
        return bad.item() == 0

    def step(self, names: list[str]) -> None:
        """Steps the optimizers and the schedules of some networks, and clears their gradients."""
        scaler = self.accelerator.scaler
        for name in names:
            if scaler is not None:
                scaler.step(self.optimizers[name])
            else:
                self.optimizers[name].step()
            self.optimizers[name].zero_grad()
            self.schedules[name].step()
        if scaler is not None:
            scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, schedules, loss scale, and the weights of all networks but the model, which has its own file."""
        scaler = self.accelerator.scaler
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedules": {name: schedule.state_dict() for name, schedule in self.schedules.items()},
            "networks": {name: network.state_dict() for name, network in self.modules.items() if name != MODEL},
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Learning rates, betas and the like are those of this run's settings. A network whose loss was off, or whose
        sizes were changed, begins as new.
        """
        for name, network in self.modules.items():
            if name != MODEL:
                weights = state["networks"].get(name, {})
                if _shapes(weights) != _shapes(network.state_dict()):
                    continue
                network.load_state_dict(weights)
            optimizer, schedule = self.optimizers[name], self.schedules[name]
            options = [{key: group[key] for key in _OPTIONS} for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            schedule.load_state_dict({**state["schedules"][name], "base_lrs": schedule.base_lrs})
            for group, own in zip(optimizer.param_groups, options, strict=True):
                group.update(own, lr=own["initial_lr"] * learning_rate_factor(schedule.last_epoch, self.args))
            schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def clear(self) -> None:
        """Forgets all networks. A process that leaves with live DDP objects can hang the others."""
        for part in (self.wrapped, self.optimizers, self.schedules, self.modules):
            part.clear()


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}
