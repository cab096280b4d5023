# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What travels with the weights: configuration, model, quantizer and image processor.

The files are flat and import nothing but each other (with one dot), torch, NumPy, Pillow and transformers, so that
`save_pretrained` can copy them beside a checkpoint and `trust_remote_code=True` can load them without this package.
"""

from .base_quantizer_vq import Quantizer, get_vq_layers, no_vq
from .binary_spherical_vq import BinarySphericalQuant
from .checks_quantizer_vq import RECOMMENDED_QUANTIZER
from .codebook_vq import Codebook
from .configuration_maskgit import PRESETS, MaskGitConfig
from .configuration_vq import VQConfig
from .configuration_vq_classifier import VQImageClassificationConfig
from .finite_scalar_vq import FiniteScalarQuant
from .generation_maskgit import MaskGitGenerateOutput
from .group_vq import GroupVectorQuant
from .image_processing_vq import VQImageProcessor
from .index_backprop_vq import IndexBackpropQuant
from .lookup_free_vq import LookupFreeQuant
from .masking_maskgit import draw_mask, mask_ratio
from .micro_batches_vq import micro_batch
from .modeling_maskgit import MaskGitModel, MaskGitOutput, MaskGitPreTrainedModel
from .modeling_vq import VQDecoderOutput, VQEncoderOutput, VQModel, VQModelOutput, VQPreTrainedModel
from .modeling_vq_classifier import VQImageClassifierOutput, VQModelForImageClassification
from .options_maskgit import MaskGitSampling
from .pipeline_maskgit import ImageGenerationPipeline
from .pipeline_vq import ImageTokenizationPipeline
from .pooling_vq import MaxVecPool2d, SoftMaxVecPool2d
from .projected_quant_vq import ProjectedQuant
from .quantizer_output_vq import QuantizerOutput
from .quantizer_vq import VectorQuant
from .quantizers_vq import register_quantizer
from .residual_implicit_vq import ResidualFiniteScalarQuant, ResidualLookupFreeQuant
from .residual_vq import ResidualVectorQuant
from .sim_vq import SimVectorQuant

__all__ = [
    "PRESETS",
    "RECOMMENDED_QUANTIZER",
    "BinarySphericalQuant",
    "Codebook",
    "FiniteScalarQuant",
    "GroupVectorQuant",
    "ImageGenerationPipeline",
    "ImageTokenizationPipeline",
    "IndexBackpropQuant",
    "LookupFreeQuant",
    "MaskGitConfig",
    "MaskGitGenerateOutput",
    "MaskGitModel",
    "MaskGitOutput",
    "MaskGitPreTrainedModel",
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
    "VQDecoderOutput",
    "VQEncoderOutput",
    "VQImageClassificationConfig",
    "VQImageClassifierOutput",
    "VQImageProcessor",
    "VQModel",
    "VQModelForImageClassification",
    "VQModelOutput",
    "VQPreTrainedModel",
    "VectorQuant",
    "draw_mask",
    "get_vq_layers",
    "mask_ratio",
    "micro_batch",
    "no_vq",
    "register_quantizer",
]
