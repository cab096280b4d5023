"""The settings that every trainer shares."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_vq.training import launcher
from hf_vq.training.sharding import require_shardable

AUTO_SPLIT, NO_SPLIT = "auto", "none"


@dataclass
class BaseTrainingArguments:
    """Settings that every trainer of this package shares; the help of each field is its documentation."""

    # Where the run lives
    output_dir: str = field(metadata={"help": "Folder of the run: checkpoints, metrics.jsonl, pictures, final model."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that output_dir already holds and start anew."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "'latest', or the path of a checkpoint folder, to continue from with the settings of its run."
        },
    )
    allow_changes: bool = field(
        default=False,
        metadata={"help": "Let a resumed run change learning rate, batch size and the like; it writes down what."},
    )

    init_from: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a model whose weights the run starts from, to fine-tune it."},
    )
    init_from_revision: str | None = field(
        default=None, metadata={"help": "Commit, branch or tag of that model, if it is on the Hub."}
    )

    # Data
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(
        default=AUTO_SPLIT,
        metadata={"help": "Held-out split; auto holds eval_fraction of the train split out, none holds nothing out."},
    )
    eval_fraction: float = field(
        default=0.05, metadata={"help": "Part of the train split held out by eval_split auto (0 = none)."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data set as a stream, without storing it."})
    shuffle_buffer: int = field(default=2_000, metadata={"help": "Images that a stream holds for shuffling."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read the data (0 = none)."})

    # Length and batches
    max_steps: int = field(default=10_000, metadata={"help": "Optimizer steps of the run."})
    train_batch_size: int = field(default=32, metadata={"help": "Images per process and forward pass."})
    eval_batch_size: int = field(default=64, metadata={"help": "Images per process in evaluation."})
    max_eval_images: int | None = field(
        default=None, metadata={"help": "Evaluate on at most so many images, evenly spaced."}
    )
    gradient_accumulation_steps: int = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Forward passes (micro batches) per optimizer step; the launcher's, or 1, if not given."},
    )

    # Optimizer
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(
        default=1e-4, metadata={"help": "Weight decay; never on codebooks, embeddings, norms and biases."}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "First beta of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of AdamW."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Epsilon of AdamW."})
    lr_scheduler: str = field(
        default="cosine",
        metadata={"help": "Learning rate over time.", "choices": ["constant", "cosine", "onecycle"]},
    )
    warmup_steps: int = field(
        default=0,
        metadata={"help": "Steps of linear warm-up; for onecycle the rising part (0 = 3/10 of it)."},
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradient's norm to this (0 = never)."})

    # Weight averaging
    use_ema: bool = field(default=False, metadata={"help": "Keep an average of the weights; it is what is published."})
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of that average (warmed up over early steps)."})

    # Machine
    mixed_precision: str = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Autocast precision; the launcher's, or no, if not given.",
            "choices": ["no", "bf16", "fp16"],
        },
    )
    torch_compile: bool = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Compile the networks (inductor, or the launcher's backend); its word if not given."},
    )
    fsdp: bool = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Shard weights, moments and averages over processes (FSDP2); the launcher's, if not given."},
    )
    channels_last: bool = field(default=False, metadata={"help": "Channels-last memory layout (faster on GPUs)."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU although an accelerator is there."})
    ddp_timeout: int = field(
        default=1800, metadata={"help": "Seconds that a process waits for the others in a step before the run fails."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order, augmentation and codebook."})

    # Reports
    logging_steps: int = field(default=50, metadata={"help": "Steps between two lines of training metrics."})
    eval_steps: int = field(default=500, metadata={"help": "Steps between two evaluations (0 = only at the end)."})
    save_steps: int = field(default=500, metadata={"help": "Steps between two checkpoints (0 = only at the end)."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; 'none' keeps all."})
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "Accelerate trackers: tensorboard, wandb, trackio, ... or none."}
    )
    run_name: str = field(default="hf_vq", metadata={"help": "Project name shown by the trackers."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bar."})

    # Publishing
    save_training_state: bool = field(
        default=False,
        metadata={"help": "Keep discriminator and optimizers beside the final model, for those who fine-tune it."},
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Publish the final model on the Hub, as the user of `hf auth login`."}
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={"help": "Repository to publish to, such as user/name (default: output_dir's name)."},
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "Make that repository private."})

    # These have no influence on the weights, so a resumed run may change them.
    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        {
            "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_changes", "dataloader_num_workers",
            "eval_batch_size", "max_eval_images", "use_cpu", "logging_steps", "eval_steps", "save_steps",
            "save_total_limit", "report_to", "run_name", "disable_tqdm", "push_to_hub", "hub_model_id",
            "hub_private_repo", "save_training_state", "torch_compile", "ddp_timeout", "fsdp",
        }
    )  # fmt: skip
    # What decides which images are held out stays, or held-out images would have been trained on.
    never_changes: ClassVar[frozenset[str]] = frozenset(
        {"seed", "eval_fraction", "init_from", "init_from_revision", "streaming"}
    )

    def __post_init__(self) -> None:
        launcher.require_supported()
        self.gradient_accumulation_steps = launcher.followed_accumulation(self.gradient_accumulation_steps)
        self.mixed_precision = launcher.followed_precision(self.mixed_precision)
        self.torch_compile = launcher.followed_compile(self.torch_compile)
        self.fsdp = launcher.followed_fsdp(self.fsdp)
        self.report_to = [name for name in self.report_to if name != "none"]
        self.eval_split = self.eval_split or AUTO_SPLIT  # None said so in version 0.1.0
        for name in ("max_steps", "train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "ddp_timeout"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "adam_epsilon"):
            self._require(name, getattr(self, name) > 0, "greater than 0")
        for name in (
            "weight_decay", "warmup_steps", "max_grad_norm", "logging_steps", "eval_steps", "save_steps",
            "dataloader_num_workers", "shuffle_buffer",
        ):  # fmt: skip
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("adam_beta1", "adam_beta2", "ema_decay", "eval_fraction"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("save_total_limit", "max_eval_images"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1, or none")
        self._require("lr_scheduler", self.lr_scheduler in ("constant", "cosine", "onecycle"), "a known schedule")
        self._require("mixed_precision", self.mixed_precision in ("no", "bf16", "fp16"), "no, bf16 or fp16")
        launcher.require_precision_runs(self.mixed_precision, self.use_cpu)
        if self.fsdp:
            require_shardable(self)
        if self.warmup_steps >= self.max_steps and self.warmup_steps > 0:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be smaller than max_steps ({self.max_steps}), or the "
                "learning rate never arrives; with 0 there is no warm-up."
            )

    def _require(self, name: str, holds: bool, expectation: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {expectation}, got {getattr(self, name)!r}.")

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain, JSON-ready values."""
        return dataclasses.asdict(self)

    def fixed_on_resume(self) -> dict[str, Any]:
        """The fields that a resumed run shares with the run it continues, unless it is told to change them."""
        return {name: value for name, value in self.to_dict().items() if name not in self.free_on_resume}

    @property
    def images_per_step(self) -> int:
        """Images of an optimizer step of one process."""
        return self.train_batch_size * self.gradient_accumulation_steps

    def recipe(self) -> dict[str, Any]:
        """The rows of a model card on how the weights were made; a row that is None is left out."""
        micro_batches = self.gradient_accumulation_steps
        return {
            "optimizer": f"AdamW, betas ({self.adam_beta1}, {self.adam_beta2}), weight decay {self.weight_decay:g}",
            "learning rate": f"{self.learning_rate:g}, {self.lr_scheduler}",
            "warm-up steps": self.warmup_steps or None,
            "gradient clipping": self.max_grad_norm or None,
            "weight average": f"decay {self.ema_decay}" if self.use_ema else None,
            "micro batches per step": micro_batches if micro_batches > 1 else None,
            "precision": {"no": "float32"}.get(self.mixed_precision, self.mixed_precision),
            "compiled": "yes" if self.torch_compile else None,
            "sharded": "FSDP2" if self.fsdp else None,
            "seed": self.seed,
        }

    def measured_split(self) -> str:
        """The split that evaluations measure, in words."""
        drawn = self.eval_split == AUTO_SPLIT
        return f"{self.eval_fraction:.0%} of {self.train_split}, held out" if drawn else self.eval_split

    @property
    def named_eval_split(self) -> str | None:
        """The split of the data set to measure on; None if part of the train split is held out, or nothing."""
        return None if self.eval_split in (AUTO_SPLIT, NO_SPLIT) else self.eval_split

    @property
    def drawn_fraction(self) -> float:
        """The part of the train split to hold out; 0 if there is another split, or nothing is held out."""
        return self.eval_fraction if self.eval_split == AUTO_SPLIT else 0.0
