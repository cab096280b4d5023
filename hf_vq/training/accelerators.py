"""The Accelerator of a run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.launcher import without_fsdp
from hf_vq.training.reporting import LOGGING_FOLDER


def make_accelerator(args: BaseTrainingArguments) -> Accelerator:
    """Joins the processes of a run, with the precision and the trackers that its settings name."""
    with without_fsdp():
        return _make_accelerator(args)


def _make_accelerator(args: BaseTrainingArguments) -> Accelerator:
    return Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=args.use_cpu or not torch.accelerator.is_available(),
        # Trainers divide their losses themselves, and Accelerate would divide once more by what the launcher says.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",  # the networks are compiled where they are wrapped, as each run's own settings say
        log_with=args.report_to or None,
        project_config=ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=str(Path(args.output_dir) / LOGGING_FOLDER)
        ),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout)),
        ],
    )
