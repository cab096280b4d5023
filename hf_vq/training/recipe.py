"""The rows of a card on how the weights were made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_vq.training.arguments import BaseTrainingArguments
from hf_vq.training.order import is_stream

if TYPE_CHECKING:
    from hf_vq.training.trainer import BaseTrainer


def recipe_rows(trainer: BaseTrainer) -> dict[str, Any]:
    """What all runs have; what is off is None."""
    args = trainer.args
    return {
        "training images": None if is_stream(trainer.train_dataset) else len(trainer.train_dataset),
        "steps": trainer.step,
        "images per step": trainer.images_per_step(),
        "images seen": trainer.step * trainer.images_per_step(),
        "processes": f"{trainer.accelerator.num_processes} x {trainer.accelerator.device.type}",
        "optimizer": f"AdamW, betas ({args.adam_beta1}, {args.adam_beta2}), weight decay {args.weight_decay:g}",
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler}",
        "warm-up steps": args.warmup_steps or None,
        "gradient clipping": args.max_grad_norm or None,
        "weight average": f"decay {args.ema_decay}" if args.use_ema else None,
        "precision": {"no": "float32"}.get(args.mixed_precision, args.mixed_precision),
        "seed": args.seed,
    }


def measured_split(args: BaseTrainingArguments, dataset: str | None) -> str | None:
    """The split that was measured, in words; None where the data sets were given as objects."""
    if dataset is None:
        return None
    return args.eval_split or f"{args.eval_fraction:.0%} of {args.train_split}, held out"
