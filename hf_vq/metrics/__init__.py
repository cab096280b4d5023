"""Metrics of tokenizers, generators and classifiers. They are exact over any number of processes."""

from typing import TYPE_CHECKING

from hf_vq.utils.lazy import lazy_names

if TYPE_CHECKING:
    from hf_vq.metrics.base import ExactSum as ExactSum
    from hf_vq.metrics.base import bits_per_image as bits_per_image
    from hf_vq.metrics.base import perplexity as perplexity
    from hf_vq.metrics.classification import ClassificationMetrics as ClassificationMetrics
    from hf_vq.metrics.features import FeatureExtractor as FeatureExtractor
    from hf_vq.metrics.features import Inception as Inception
    from hf_vq.metrics.features import ShrunkPixels as ShrunkPixels
    from hf_vq.metrics.features import make_extractor as make_extractor
    from hf_vq.metrics.generation import FrechetDistance as FrechetDistance
    from hf_vq.metrics.generation import GeneratorMetrics as GeneratorMetrics
    from hf_vq.metrics.generation import HiddenTokenMetrics as HiddenTokenMetrics
    from hf_vq.metrics.reconstruction import TokenizerMetrics as TokenizerMetrics

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "base": ["ExactSum", "bits_per_image", "perplexity"],
        "reconstruction": ["TokenizerMetrics"],
        "classification": ["ClassificationMetrics"],
        "generation": ["FrechetDistance", "GeneratorMetrics", "HiddenTokenMetrics"],
        "features": ["FeatureExtractor", "Inception", "ShrunkPixels", "make_extractor"],
    },
)
