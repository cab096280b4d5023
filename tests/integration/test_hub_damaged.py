"""What is damaged, altered or not what it says is an error, and nothing of it is loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load, save

import hf_vq
from hf_vq import VQModel
from hf_vq.hub.repository import HubError

if TYPE_CHECKING:
    from ..hub_server import HubServer
from .hub_models import NAME, assert_same, edit_config, tiny


@pytest.mark.parametrize(
    ("damage", "size", "is_offline"),
    [
        (lambda data: data[:-10], "50GB", False),
        (lambda data: data[:-10] + bytes(10), "50GB", True),
        (lambda data: data[:-10] + bytes(10), "8KB", False),
        (lambda data: b"", "8KB", True),
    ],
    ids=["cut", "altered, offline", "altered shard", "empty shard, offline"],
)
def test_a_file_damaged_in_the_cache_is_an_error(
    hub: HubServer, offline: Callable[[], None], damage: Callable[[bytes], bytes], size: str, is_offline: bool
) -> None:
    """Whole or the last of several shards: found before a tensor is used; deleting it mends it."""
    hf_vq.push_to_hub(tiny(), NAME, max_shard_size=size)
    hf_vq.from_hub(NAME)
    folder = Path(hf_hub_download(NAME, "config.json")).parent
    blob = sorted(folder.glob("*.safetensors"))[-1].resolve()
    blob.write_bytes(damage(blob.read_bytes()))
    if is_offline:
        offline()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VQModel, "from_pretrained", None)
        with pytest.raises(HubError, match=f"is damaged in the cache: .*{blob.name}. Delete {blob}"):
            hf_vq.from_hub(NAME)

    if not is_offline:
        blob.unlink()
        assert_same(hf_vq.from_hub(NAME)[0], tiny())


def test_settings_damaged_in_the_cache_are_an_error(pushed: VQModel) -> None:
    """Not only weights are verified."""
    path = Path(hf_hub_download(NAME, "config.json"))
    path.write_text(path.read_text().replace('"embed_dim": 4', '"embed_dim": 5'))

    with pytest.raises(HubError, match="'config.json' of 'alice/vq' is damaged"):
        hf_vq.from_hub(NAME)


def test_where_the_cache_has_no_links_the_hub_is_asked(pushed: VQModel, hub: HubServer) -> None:
    """As on Windows without developer mode: the hash comes from the Hub."""
    path = Path(hf_hub_download(NAME, "model.safetensors"))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert_same(hf_vq.from_hub(NAME)[0], pushed)
    path.write_bytes(content[:-1] + b"?")

    with pytest.raises(HubError, match="'model.safetensors' of 'alice/vq' is damaged"):
        hf_vq.from_hub(NAME)


@pytest.mark.parametrize("served", [lambda data: data[:-10] + bytes(10), lambda data: data[:-10]])
def test_other_bytes_than_the_hub_announced_are_an_error(
    pushed: VQModel, hub: HubServer, served: Callable[[bytes], bytes]
) -> None:
    """What arrives altered, or shorter than announced, is not loaded."""
    sha256 = hub.store.files(NAME)["model.safetensors"].content
    content = hub.store.contents[sha256]
    hub.store.contents[sha256] = served(content)
    with pytest.raises(HubError, match="'model.safetensors' of 'alice/vq'"):
        hf_vq.from_hub(NAME)


def test_nothing_is_unpickled(pushed: VQModel, hub: HubServer, tmp_path: Path) -> None:
    """A repository with pickled weights alone has no weights for us, and what is in them does not run."""
    witness = tmp_path / "witness"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    repository = hub.store.repositories["models", NAME]
    files = {path: file for path, file in hub.store.files(NAME).items() if path != "model.safetensors"}
    hub.store.commit(repository, "main", repository.refs["main"], "remove", files)
    hub.store.write(NAME, "pytorch_model.bin", pickle.dumps(Payload()))

    with pytest.raises(HubError, match="no complete safetensors weights"):
        hf_vq.from_hub(NAME)
    assert not witness.exists() and not [path for _, path in hub.requests if path.endswith(".bin")]


def test_missing_weights_are_an_error(pushed: VQModel, hub: HubServer) -> None:
    """A shard that is not there, and a tensor that is in no file, are not replaced by random numbers."""
    hf_vq.push_to_hub(pushed, NAME, max_shard_size="8KB", revision="shards")
    repository = hub.store.repositories["models", NAME]
    files = hub.store.files(NAME, "shards")
    shard = sorted(path for path in files if path.endswith(".safetensors"))[-1]
    kept = {path: file for path, file in files.items() if path != shard}
    hub.store.commit(repository, "shards", repository.refs["shards"], "remove", kept)
    with pytest.raises(HubError, match=f"no complete safetensors weights .{shard} is missing"):
        hf_vq.from_hub(NAME, revision="shards")

    tensors = load(hub.store.read(NAME, "model.safetensors"))
    del tensors["quantize.codebook.weight"]
    hub.store.write(NAME, "model.safetensors", save(tensors, {"format": "pt"}))
    with pytest.raises(HubError, match="are not whole: quantize.codebook.weight missing"):
        hf_vq.from_hub(NAME)


def test_no_weights_but_the_verified_ones_are_loaded(pushed: VQModel, hub: HubServer) -> None:
    """A configuration that names another file of the cache does not get it."""
    other = save({name: torch.zeros_like(value) for name, value in pushed.state_dict().items()})
    edit_config(hub, transformers_weights="other.safetensors")
    commit = hub.store.write(NAME, "other.safetensors", other)
    hf_hub_download(NAME, "other.safetensors", revision=commit)

    try:
        loaded, _ = hf_vq.from_hub(NAME)
    except OSError as error:
        assert "other.safetensors" in str(error)
    else:
        assert_same(loaded, pushed)


@pytest.mark.parametrize("weight_map", [{"encoder.conv.0.weight": "weights.bin"}, {"a": "../x.safetensors"}, {}])
def test_an_index_may_name_safetensors_alone(pushed: VQModel, hub: HubServer, weight_map: dict[str, str]) -> None:
    """A pickle, or a file elsewhere, is not even fetched."""
    repository = hub.store.repositories["models", NAME]
    files = {name: file for name, file in hub.store.files(NAME).items() if name != "model.safetensors"}
    hub.store.commit(repository, "main", repository.refs["main"], "Delete model.safetensors", files)
    hub.store.write(NAME, "weights.bin", b"no weights")
    hub.store.write(NAME, "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())

    with pytest.raises(HubError, match="only safetensors files beside it are read"):
        hf_vq.from_hub(NAME)
    assert not any("weights.bin" in path for _, path in hub.requests)


DEEP = b'{"a":' * 10**5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"\xff"),
        ("config.json", DEEP),
        ("config.json", b'{"model_type": []}'),
        ("config.json", b'{"model_type": {"a": 1}, "architectures": 5}'),
        ("config.json", b'{"model_type": "hf_vq", "embed_dim": "8"}'),
        ("config.json", b'{"model_type": "hf_vq", "channel_multiplier": 5}'),
        ("config.json", b'{"model_type": "hf_vq", "pixel_range": ["a", "b"]}'),
        ("config.json", b'{"model_type": "hf_vq", "num_codes": 1000000000000}'),
        ("config.json", b'{"model_type": "hf_vq", "attn_implementation": "someone/kernel"}'),
        ("config.json", b'{"model_type": "hf_vq", "quantization_config": 5}'),
        ("config.json", b'{"model_type": "hf_vq", "dtype": "float3"}'),
        ("config.json", b'{"model_type": "hf_vq", "id2label": 5}'),
        ("config.json", b'{"model_type": "hf_maskgit", "vq_config": 5}'),
        ("config.json", b'{"model_type": "hf_vq_classifier", "backbone_config": {"model_type": "nothing"}}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("model.safetensors", (2).to_bytes(8, "little") + b"{}"),
        ("model.safetensors", save({"a": torch.zeros(1)})),
        ("model.safetensors", save({"quantize.codebook.weight": torch.zeros(2, 2)}, {"format": "tf"})),
        ("preprocessor_config.json", b"{"),
        ("preprocessor_config.json", b"[]"),
        ("preprocessor_config.json", DEEP),
        ("preprocessor_config.json", b'{"size": "big"}'),
        ("preprocessor_config.json", b'{"size": {"shortest_edge": 30000}}'),
        ("preprocessor_config.json", b'{"image_mean": {"a": 1}}'),
        ("model.safetensors.index.json", b"{"),
        ("model.safetensors.index.json", b"[]"),
        ("model.safetensors.index.json", DEEP),
        ("model.safetensors.index.json", b'{"weight_map": 5}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": []}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 5, "b": "c"}}'),
    ],
)
def test_whatever_is_wrong_with_a_file_is_an_error_of_the_hub(
    pushed: VQModel, hub: HubServer, name: str, content: bytes
) -> None:
    """One kind of exception, which names the repository and keeps the cause."""
    repository = hub.store.repositories["models", NAME]
    if name == "model.safetensors.index.json":
        files = {path: file for path, file in hub.store.files(NAME).items() if path != "model.safetensors"}
        hub.store.commit(repository, "main", repository.refs["main"], "Delete model.safetensors", files)
    hub.store.write(NAME, name, content)

    with pytest.raises(HubError, match=f"'{NAME}'"):
        hf_vq.from_hub(NAME)


@pytest.mark.parametrize("is_offline", [True, False], ids=["offline", "status 500"])
@pytest.mark.parametrize("kind", ["plain copy", "link to a file named by its own hash"])
def test_what_was_altered_is_not_loaded_where_the_hub_cannot_be_asked(
    pushed: VQModel, hub: HubServer, offline: Callable[[], None], caplog: Any, is_offline: bool, kind: str
) -> None:
    """A hash that came from the Hub decides, kept from an earlier load; without one the caller does."""
    hf_hub_download(NAME, "config.json")
    hf_hub_download(NAME, "preprocessor_config.json")
    path = Path(hf_hub_download(NAME, "model.safetensors"))
    other = save(dict(tiny(1).state_dict()), {"format": "pt"})
    path.unlink()
    if kind == "plain copy":
        path.write_bytes(other)
    else:
        blob = path.parents[2] / "blobs" / hashlib.sha256(other).hexdigest()
        blob.write_bytes(other)
        path.symlink_to(blob)
    if is_offline:
        offline()
    hub.fail("POST", "/paths-info/")

    names = "config.json, model.safetensors, preprocessor_config.json of 'alice/vq' are not verified"
    with pytest.raises(HubError, match=f"{names}: the Hub cannot be asked"):
        hf_vq.from_hub(NAME)
    with caplog.at_level("WARNING", "hf_vq"):
        assert_same(hf_vq.from_hub(NAME, allow_unverified=True)[0], tiny(1))
    assert names in caplog.text


@pytest.mark.parametrize("allow_unverified", [False, True])
def test_a_hash_of_the_hub_is_kept_for_the_time_without_it(
    pushed: VQModel, hub: HubServer, offline: Callable[[], None], allow_unverified: bool
) -> None:
    """What was verified once is verified again offline, also a plain copy; then it is never loaded altered."""
    hf_vq.from_hub(NAME)
    path = Path(hf_hub_download(NAME, "model.safetensors"))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    offline()
    assert_same(hf_vq.from_hub(NAME)[0], pushed)

    path.write_bytes(save(dict(tiny(1).state_dict()), {"format": "pt"}))
    with pytest.raises(HubError, match="'model.safetensors' of 'alice/vq' is damaged in the cache"):
        hf_vq.from_hub(NAME, allow_unverified=allow_unverified)
