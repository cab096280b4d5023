"""Pictures of images and codebooks. Every function returns a `PIL.Image`."""

from typing import TYPE_CHECKING

from hf_vq.utils.lazy import lazy_names

if TYPE_CHECKING:
    from hf_vq.plots.codebook import projection as projection
    from hf_vq.plots.codebook import usage_curves as usage_curves
    from hf_vq.plots.codebook import usage_histogram as usage_histogram
    from hf_vq.plots.images import reconstruction_grid as reconstruction_grid
    from hf_vq.plots.images import sample_sheet as sample_sheet

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "images": ["reconstruction_grid", "sample_sheet"],
        "codebook": ["projection", "usage_curves", "usage_histogram"],
    },
)
