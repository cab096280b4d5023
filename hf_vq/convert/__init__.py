"""Converts weights of other projects to models of this package, and back."""

from typing import TYPE_CHECKING

from hf_vq.utils.lazy import lazy_names

if TYPE_CHECKING:
    from hf_vq.convert.checkpoints import Conversion as Conversion
    from hf_vq.convert.checkpoints import convert_checkpoint as convert_checkpoint
    from hf_vq.convert.checkpoints import convert_state_dict as convert_state_dict
    from hf_vq.convert.checkpoints import save_for_diffusers as save_for_diffusers
    from hf_vq.convert.halton_maskgit import GeneratorConversion as GeneratorConversion
    from hf_vq.convert.halton_maskgit import convert_generator as convert_generator
    from hf_vq.convert.layouts import LAYOUTS as LAYOUTS
    from hf_vq.convert.vector_quantize_pytorch import LayerConversion as LayerConversion
    from hf_vq.convert.vector_quantize_pytorch import (
        convert_vector_quantize_pytorch as convert_vector_quantize_pytorch,
    )
    from hf_vq.convert.vqtorch import load_vqtorch_state_dict as load_vqtorch_state_dict

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checkpoints": ["Conversion", "convert_checkpoint", "convert_state_dict", "save_for_diffusers"],
        "halton_maskgit": ["GeneratorConversion", "convert_generator"],
        "layouts": ["LAYOUTS"],
        "vector_quantize_pytorch": ["LayerConversion", "convert_vector_quantize_pytorch"],
        "vqtorch": ["load_vqtorch_state_dict"],
    },
)
