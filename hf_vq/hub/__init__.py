"""Models to and from the Hub."""

from typing import TYPE_CHECKING

from hf_vq.utils.lazy import lazy_names

if TYPE_CHECKING:
    from hf_vq.hub.loading import load_model as load_model
    from hf_vq.hub.loading import load_tokenizer as load_tokenizer
    from hf_vq.hub.models import from_hub as from_hub
    from hf_vq.hub.models import push_to_hub as push_to_hub
    from hf_vq.hub.models import reconstruction_picture as reconstruction_picture
    from hf_vq.hub.repository import HubError as HubError
    from hf_vq.hub.repository import create_repository as create_repository
    from hf_vq.hub.repository import fetch_file as fetch_file
    from hf_vq.hub.repository import publish_folder as publish_folder
    from hf_vq.hub.samples import sample_model as sample_model

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "loading": ["load_model", "load_tokenizer"],
        "models": ["from_hub", "push_to_hub", "reconstruction_picture"],
        "repository": ["HubError", "create_repository", "fetch_file", "publish_folder"],
        "samples": ["sample_model"],
    },
)
