# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Vector-quantized image tokenizers in the Hugging Face way.

Importing this package registers its classes, so that `AutoConfig`, `AutoModel`, `AutoImageProcessor` and `pipeline`
load its checkpoints without `trust_remote_code`. Everything that is not needed for this is imported on first use.
`help(hf_vq.VQModel)` and the like say more; `help(hf_vq)` itself goes on with all methods of all classes.

Layers that quantize, `z_q, out = layer(z)`:

    VectorQuant, GroupVectorQuant, ResidualVectorQuant    the nearest code of a list
    FiniteScalarQuant, LookupFreeQuant, BinarySphericalQuant, ResidualFiniteScalarQuant, ResidualLookupFreeQuant
                                                          codes without a list: FSQ, LFQ, BSQ
    SimVectorQuant, IndexBackpropQuant                    SimVQ, IBQ
    RECOMMENDED_QUANTIZER                                 the arguments of VectorQuant that measured best
    Quantizer, QuantizerOutput, register_quantizer        the base class, for kinds of your own
    no_vq, get_vq_layers, micro_batch                     quantization off; the layers of a model; micro batches
    ProjectedQuant, MaxVecPool2d, SoftMaxVecPool2d        codes of another size than the vectors; pooling of vectors

Models:

    VQModel, VQConfig, VQImageProcessor                   images to tokens and back
    MaskGitModel, MaskGitConfig, MaskGitSampling          makes images of a class; draw_mask is its masking
    VQModelForImageClassification, VQImageClassificationConfig
    ImageTokenizationPipeline, ImageGenerationPipeline    pipeline("image-tokenization"), pipeline("image-generation")
    sample_model                                          a trained tokenizer that comes with the package
    from_hub, push_to_hub                                 verified files and a card, in one commit

Training, with the extra `hf_vq[train]` (`from hf_vq import *` has these names where it is installed):

    TokenizerTrainer, TokenizerTrainingArguments
    GeneratorTrainer, GeneratorTrainingArguments          on tokens that load_token_dataset reads
    ClassifierTrainer, ClassifierTrainingArguments

Sub-packages: `data` (images and tokens), `convert` (weights of other projects), `evaluation`, `metrics`, `plots`,
`losses`, `hub`. `__version__` is the version.
"""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

from hf_vq.kinds import KINDS
from hf_vq.modeling import (
    RECOMMENDED_QUANTIZER,
    BinarySphericalQuant,
    FiniteScalarQuant,
    GroupVectorQuant,
    ImageGenerationPipeline,
    ImageTokenizationPipeline,
    IndexBackpropQuant,
    LookupFreeQuant,
    MaskGitConfig,
    MaskGitModel,
    MaskGitSampling,
    MaxVecPool2d,
    ProjectedQuant,
    Quantizer,
    QuantizerOutput,
    ResidualFiniteScalarQuant,
    ResidualLookupFreeQuant,
    ResidualVectorQuant,
    SimVectorQuant,
    SoftMaxVecPool2d,
    VectorQuant,
    VQConfig,
    VQImageClassificationConfig,
    VQImageProcessor,
    VQModel,
    VQModelForImageClassification,
    draw_mask,
    get_vq_layers,
    micro_batch,
    no_vq,
    register_quantizer,
)
from hf_vq.modeling.version_vq import __version__
from hf_vq.utils.extras import is_installed
from hf_vq.utils.lazy import lazy_names

if TYPE_CHECKING:
    from hf_vq.data.tokens import load_token_dataset as load_token_dataset
    from hf_vq.hub.models import from_hub as from_hub
    from hf_vq.hub.models import push_to_hub as push_to_hub
    from hf_vq.hub.samples import sample_model as sample_model
    from hf_vq.training.arguments import ClassifierTrainingArguments as ClassifierTrainingArguments
    from hf_vq.training.arguments import GeneratorTrainingArguments as GeneratorTrainingArguments
    from hf_vq.training.arguments import TokenizerTrainingArguments as TokenizerTrainingArguments
    from hf_vq.training.classifier import ClassifierTrainer as ClassifierTrainer
    from hf_vq.training.generator import GeneratorTrainer as GeneratorTrainer
    from hf_vq.training.tokenizer import TokenizerTrainer as TokenizerTrainer


def _push_to_hub(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Publishes this model with our card and its image processor; see `hf_vq.push_to_hub`."""
    from hf_vq.hub.models import push_to_hub

    return push_to_hub(model, *args, **kwargs)


for _kind in KINDS.values():
    AutoConfig.register(_kind.config.model_type, _kind.config, exist_ok=True)
    _kind.auto_model.register(_kind.config, _kind.model, exist_ok=True)
    if _kind.has_processor:
        AutoImageProcessor.register(_kind.config, image_processor_classes={"pil": VQImageProcessor}, exist_ok=True)
        # There is none. Pipelines look for one, and would ask whether to run a repository's code.
        VIDEO_PROCESSOR_MAPPING.register(_kind.config, {}, exist_ok=True)  # type: ignore[arg-type]
    # transformers' own method would write its generic card, and no image processor.
    _kind.model.push_to_hub = _push_to_hub  # type: ignore[assignment, method-assign]
PIPELINE_REGISTRY.register_pipeline("image-tokenization", ImageTokenizationPipeline, pt_model=AutoModel)
PIPELINE_REGISTRY.register_pipeline("image-generation", ImageGenerationPipeline, pt_model=AutoModel)


_lazy, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "hub.models": ["from_hub", "push_to_hub"],
        "hub.samples": ["sample_model"],
        "data.tokens": ["load_token_dataset"],
        "training.arguments": [
            "ClassifierTrainingArguments",
            "GeneratorTrainingArguments",
            "TokenizerTrainingArguments",
        ],
        "training.classifier": ["ClassifierTrainer"],
        "training.generator": ["GeneratorTrainer"],
        "training.tokenizer": ["TokenizerTrainer"],
    },
    submodules=("cards", "convert", "data", "evaluation", "hub", "losses", "metrics", "plots", "training"),
    extra="train",
)

__all__ = [
    "RECOMMENDED_QUANTIZER",
    "BinarySphericalQuant",
    "FiniteScalarQuant",
    "GroupVectorQuant",
    "ImageGenerationPipeline",
    "ImageTokenizationPipeline",
    "IndexBackpropQuant",
    "LookupFreeQuant",
    "MaskGitConfig",
    "MaskGitModel",
    "MaskGitSampling",
    "MaxVecPool2d",
    "ProjectedQuant",
    "Quantizer",
    "QuantizerOutput",
    "ResidualFiniteScalarQuant",
    "ResidualLookupFreeQuant",
    "ResidualVectorQuant",
    "SimVectorQuant",
    "SoftMaxVecPool2d",
    "VQConfig",
    "VQImageClassificationConfig",
    "VQImageProcessor",
    "VQModel",
    "VQModelForImageClassification",
    "VectorQuant",
    "__version__",
    "draw_mask",
    "from_hub",
    "get_vq_layers",
    "micro_batch",
    "no_vq",
    "push_to_hub",
    "register_quantizer",
    "sample_model",
]
if is_installed("accelerate", "datasets", "matplotlib", "torchmetrics", "tqdm"):
    # Without the training extra, a star import has to work as well. It leaves these names out, and whoever asks for
    # one of them is told what to install.
    __all__ += [
        "ClassifierTrainer",
        "ClassifierTrainingArguments",
        "GeneratorTrainer",
        "GeneratorTrainingArguments",
        "TokenizerTrainer",
        "TokenizerTrainingArguments",
        "load_token_dataset",
    ]
