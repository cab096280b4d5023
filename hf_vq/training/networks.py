"""The networks that a run trains, each with its optimizer and schedule."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.launcher import compile_options
from hf_vq.training.optimization import build_schedule, learning_rate_factor
from hf_vq.training.sharding import clip_norm, shard
from hf_vq.utils.processes import average_over_processes
from hf_vq.utils.tensors import is_sharded, local, part_of, whole

MODEL = "model"
"""The name of the model itself; a discriminator, for example, has another."""
_OPTIONS = ("initial_lr", "betas", "eps", "weight_decay")  # of a group of an optimizer, as the settings say them


class TrainedNetworks:
    """Networks by name. Each has its own AdamW and schedule, and is wrapped once for the processes of the run.

    With `fsdp` they are sharded instead. State dicts hold whole tensors in either case.

    Args:
        accelerator: Knows the device and the processes.
        args: The settings of the optimizers.
    """

    def __init__(self, accelerator: Accelerator, args: BaseTrainingArguments) -> None:
        self.accelerator = accelerator
        self.args = args
        self.memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
        self.sharded = args.fsdp and accelerator.num_processes > 1
        self.modules: dict[str, nn.Module] = {}
        self.wrapped: dict[str, Any] = {}  # modules, which torch.compile types as functions
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.schedules: dict[str, torch.optim.lr_scheduler.LambdaLR] = {}

    def place(self, network: nn.Module) -> None:
        """Moves a network to the device of this process, in the memory layout of the run."""
        network.to(self.accelerator.device)
        nn.Module.to(network, memory_format=self.memory_format)  # type: ignore[call-overload]

    def add(self, name: str, network: nn.Module, groups: list[dict[str, Any]], learning_rate: float) -> None:
        """Takes in a network, with the parameter groups and the peak learning rate of its optimizer."""
        args = self.args
        self.place(network)
        if self.sharded:
            names = {id(weight): weight_name for weight_name, weight in network.named_parameters()}
            shard(network)
            weights = dict(network.named_parameters())
            groups = [{**group, "params": [weights[names[id(old)]] for old in group["params"]]} for group in groups]
        optimizer = torch.optim.AdamW(
            groups,
            lr=learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=True if self.accelerator.device.type == "cuda" and not self.sharded else None,
        )
        self.modules[name] = network
        self.optimizers[name] = optimizer
        self.schedules[name] = build_schedule(optimizer, args)
        # The optimizers stay unwrapped: Accelerate would update the fp16 loss scale once for each of them.
        with warnings.catch_warnings():
            # Older versions of torch do not know what newer ones want in its place.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # Sharded networks are not wrapped in DDP.
            wrapped = self.accelerator.prepare_model(network, evaluation_mode=self.sharded)
        self.wrapped[name] = torch.compile(wrapped, **compile_options()) if args.torch_compile else wrapped

    def train(self) -> None:
        """Puts all networks into training mode."""
        for network in self.wrapped.values():
            network.train()

    def gradients_shared(self, name: str, shared: bool) -> AbstractContextManager[Any]:
        """Leaves out the exchange of a network's gradients, unless `shared`: in all but a step's last micro batch."""
        if self.sharded:
            self.wrapped[name].set_requires_gradient_sync(shared)
            return nullcontext()
        return nullcontext() if shared else self.accelerator.no_sync(self.wrapped[name])

    def clip_gradients(self, names: list[str]) -> dict[str, Tensor]:
        """Clips the complete gradients of some networks, and returns their norms from before."""
        norms = {}
        for name in names:
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.unscale_(self.optimizers[name])
            parameters = [weight for group in self.optimizers[name].param_groups for weight in group["params"]]
            limit = self.args.max_grad_norm or float("inf")
            if self.sharded:
                alone = [weight.grad for weight in parameters if weight.grad is not None and not is_sharded([weight])]
                if alone:  # which DDP would have averaged
                    average_over_processes(alone, self.accelerator)
                norms[name] = clip_norm(parameters, limit)
            else:
                norms[name] = nn.utils.clip_grad_norm_(parameters, limit)
        return norms

    def step(self, names: list[str], masked: Tensor) -> None:
        """Steps the optimizers and the schedules of some networks, and clears their gradients.

        Args:
            names: The networks.
            masked: On the device, bool `()`; where it is true, the weights stay as they are.
        """
        scaler = self.accelerator.scaler
        for name in names:
            optimizer = self.optimizers[name]
            if optimizer.defaults["fused"] and scaler is None:  # such an optimizer leaves its step out by itself
                optimizer.grad_scale, optimizer.found_inf = None, masked.float()  # type: ignore[attr-defined]
                optimizer.step()
            else:
                with _masked(optimizer, masked):
                    optimizer.step() if scaler is None else scaler.step(optimizer)
            optimizer.zero_grad()
            self.schedules[name].step()
        if scaler is not None:
            scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, schedules, loss scale, and the weights of all networks but the model, which has its own file."""
        scaler = self.accelerator.scaler
        return {
            "optimizers": {name: whole(optimizer.state_dict()) for name, optimizer in self.optimizers.items()},
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
            saved, fused = state["optimizers"][name], optimizer.defaults["fused"]  # which depends on the device
            groups = [{**group, "fused": fused} for group in saved["param_groups"]]
            optimizer.load_state_dict({**saved, "param_groups": groups})
            for weight, moments in optimizer.state.items():
                moments |= {key: part_of(value, weight) for key, value in moments.items()}
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


@contextmanager
def _masked(optimizer: torch.optim.Optimizer, masked: Tensor) -> Iterator[None]:
    """Puts an optimizer's weights back after its step where `masked` says so, on the device; keeps a copy of them."""
    weights = [local(weight.detach()) for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.clone() for weight in weights]
    yield
    with torch.no_grad():
        for weight, value in zip(weights, before, strict=True):
            weight.copy_(torch.where(masked, value, weight))
