# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Vector-quantized image tokenizers in the Hugging Face way.

Importing this package registers its classes, so that `AutoConfig`, `AutoModel`, `AutoImageProcessor` and `pipeline`
load its checkpoints without `trust_remote_code`. The trainers need the extra `hf_vq[train]` and are imported on first
use, as is `load_token_dataset`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .hub import from_hub, push_to_hub
from .modeling import (
    RECOMMENDED_QUANTIZER,
    GroupVectorQuant,
    ImageGenerationPipeline,
    ImageTokenizationPipeline,
    MaskGitConfig,
    MaskGitModel,
    MaskGitSampling,
    MaxVecPool2d,
    ResidualVectorQuant,
    SoftMaxVecPool2d,
    VectorQuant,
    VQConfig,
    VQImageClassificationConfig,
    VQImageProcessor,
    VQModel,
    VQModelForImageClassification,
    draw_mask,
    get_vq_layers,
    no_vq,
)
from .modeling.version_vq import __version__

if TYPE_CHECKING:
    from .token_data import load_token_dataset as load_token_dataset
    from .training.arguments import ClassifierTrainingArguments as ClassifierTrainingArguments
    from .training.arguments import GeneratorTrainingArguments as GeneratorTrainingArguments
    from .training.arguments import TokenizerTrainingArguments as TokenizerTrainingArguments
    from .training.classifier_trainer import ClassifierTrainer as ClassifierTrainer
    from .training.generator_trainer import GeneratorTrainer as GeneratorTrainer
    from .training.tokenizer_trainer import TokenizerTrainer as TokenizerTrainer

# Name -> module. Not in `__all__`: a star import has to work in an installation without the extra.
_NEEDS_TRAIN_EXTRA = {
    "ClassifierTrainer": ".training.classifier_trainer",
    "ClassifierTrainingArguments": ".training.arguments",
    "GeneratorTrainer": ".training.generator_trainer",
    "GeneratorTrainingArguments": ".training.arguments",
    "load_token_dataset": ".token_data",
    "TokenizerTrainer": ".training.tokenizer_trainer",
    "TokenizerTrainingArguments": ".training.arguments",
}

AutoConfig.register(VQConfig.model_type, VQConfig, exist_ok=True)
AutoModel.register(VQConfig, VQModel, exist_ok=True)
AutoConfig.register(MaskGitConfig.model_type, MaskGitConfig, exist_ok=True)
AutoModel.register(MaskGitConfig, MaskGitModel, exist_ok=True)
AutoConfig.register(VQImageClassificationConfig.model_type, VQImageClassificationConfig, exist_ok=True)
AutoModelForImageClassification.register(VQImageClassificationConfig, VQModelForImageClassification, exist_ok=True)
# There is none. The pipeline "image-classification" looks for one, and would ask whether to run a repository's code.
AutoVideoProcessor.register(VQImageClassificationConfig, video_processor_classes={}, exist_ok=True)
for _config in (VQConfig, VQImageClassificationConfig):
    AutoImageProcessor.register(_config, image_processor_classes={"pil": VQImageProcessor}, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline("image-tokenization", ImageTokenizationPipeline, pt_model=AutoModel)
PIPELINE_REGISTRY.register_pipeline("image-generation", ImageGenerationPipeline, pt_model=AutoModel)
# transformers' own would write its generic card, and no image processor.
VQModel.push_to_hub = push_to_hub  # type: ignore[assignment, method-assign]
MaskGitModel.push_to_hub = push_to_hub  # type: ignore[assignment, method-assign]
VQModelForImageClassification.push_to_hub = push_to_hub  # type: ignore[assignment, method-assign]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TRAIN_EXTRA:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_NEEDS_TRAIN_EXTRA[name], __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __name__:
            raise
        raise ModuleNotFoundError(
            f"{name} needs the package {error.name!r}. Install the training extra: pip install 'hf_vq[train]'",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_NEEDS_TRAIN_EXTRA])


__all__ = [
    "RECOMMENDED_QUANTIZER",
    "GroupVectorQuant",
    "ImageGenerationPipeline",
    "ImageTokenizationPipeline",
    "MaskGitConfig",
    "MaskGitModel",
    "MaskGitSampling",
    "MaxVecPool2d",
    "ResidualVectorQuant",
    "SoftMaxVecPool2d",
    "VQConfig",
    "VQImageClassificationConfig",
    "VQImageProcessor",
    "VQModel",
    "VQModelForImageClassification",
    "VectorQuant",
    "__version__",
    "from_hub",
    "draw_mask",
    "get_vq_layers",
    "no_vq",
    "push_to_hub",
]
