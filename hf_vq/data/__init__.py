"""Images and tokens: finding, reading and writing data sets."""

from typing import TYPE_CHECKING

from hf_vq.utils.lazy import lazy_names

if TYPE_CHECKING:
    from hf_vq.data.images import ImageDataset as ImageDataset
    from hf_vq.data.images import ImageStream as ImageStream
    from hf_vq.data.places import UnknownSplitError as UnknownSplitError
    from hf_vq.data.reading import convert_image as convert_image
    from hf_vq.data.reading import decode_image as decode_image
    from hf_vq.data.reading import image_to_tensor as image_to_tensor
    from hf_vq.data.sources import SAMPLE_DATASET as SAMPLE_DATASET
    from hf_vq.data.sources import image_splits as image_splits
    from hf_vq.data.sources import load_images as load_images
    from hf_vq.data.sources import pinned_revision as pinned_revision
    from hf_vq.data.token_stream import TokenStream as TokenStream
    from hf_vq.data.tokenize import TokenizationArguments as TokenizationArguments
    from hf_vq.data.tokenize import tokenize_dataset as tokenize_dataset
    from hf_vq.data.tokens import load_token_dataset as load_token_dataset
    from hf_vq.data.tokens import push_token_dataset as push_token_dataset
    from hf_vq.data.tokens import read_manifest as read_manifest
    from hf_vq.hub.loading import load_tokenizer as load_tokenizer

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "places": ["UnknownSplitError"],
        "sources": ["SAMPLE_DATASET", "image_splits", "load_images", "pinned_revision"],
        "reading": ["convert_image", "decode_image", "image_to_tensor"],
        "images": ["ImageDataset", "ImageStream"],
        "tokens": ["load_token_dataset", "load_tokenizer", "push_token_dataset", "read_manifest"],
        "token_stream": ["TokenStream"],
        "tokenize": ["TokenizationArguments", "tokenize_dataset"],
    },
)
