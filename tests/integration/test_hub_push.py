"""Pushing: one commit with everything, a person's card kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image

import hf_vq
from hf_vq import VQConfig, VQImageProcessor, VQModel
from hf_vq.hub.models import reconstruction_picture
from hf_vq.hub.repository import HubError, publish_folder

if TYPE_CHECKING:
    from ..hub_server import HubServer

NAME = "alice/vq"
METRICS = {"psnr": 23.456, "usage": 0.5, "active_codes": 8, "num_images": 7}
PERSONS_CARD = """---
license: mit # chosen with care
language: [en]
tags:
- emoji
---
# My tokenizer

Read this first.
"""


def tiny(seed: int = 0, **fields: Any) -> Any:
    """A model of some thousand parameters, another for each seed."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "image_size": 16,
        "base_channels": 8,
        "num_res_blocks": 1,
        "embed_dim": 4,
        "num_codes": 16,
        **fields,
    }
    return VQModel(VQConfig(architecture="sqvae", **settings)).eval()


def titles(hub: HubServer, revision: str = "main") -> list[str]:
    """The messages of a repository's commits, the newest first."""
    return [commit.title for commit in hub.store.repositories["models", NAME].history(revision)]


def card(hub: HubServer, revision: str = "main") -> str:
    """The card in the repository."""
    return hub.store.read(NAME, "README.md", revision).decode()


def run_without_the_package(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process in which hf_vq cannot be imported."""
    script = folder / "script.py"
    script.write_text(f'import sys\nsys.modules["hf_vq"] = None\n{code}')
    return subprocess.run(
        [sys.executable, "-I", script],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_goes_up_in_one_commit(hub: HubServer) -> None:
    """Configuration, safetensors, image processor, card, picture and code; the commit's URL comes back."""
    commit = hf_vq.push_to_hub(
        tiny(), "vq", metrics=METRICS, private=True, commit_message="First", images=[Image.new("RGB", (20, 30), "red")]
    )

    assert hub.store.repositories["models", NAME].private
    assert titles(hub) == ["First", "initial commit"]
    sha = hub.store.repositories["models", NAME].refs["main"]
    assert commit == f"{hub.url}/{NAME}/commit/{sha}"
    files = hub.store.files(NAME)
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "reconstructions.png"} < set(
        files
    )
    assert {"modeling_vq.py", "configuration_vq.py", "image_processing_vq.py", "quantizer_vq.py"} < set(files)
    results = ModelCard(card(hub)).data["eval_results"]
    assert {(result.metric_type, result.metric_value) for result in results} == {
        ("psnr", 23.456),
        ("codebook_usage", 0.5),
    }


def test_the_code_of_a_pushed_card_runs_without_the_package(hub: HubServer, tmp_path: Path) -> None:
    """What the card tells people to type loads the repository, encodes and decodes, with the pushed weights."""
    model = tiny()
    model.push_to_hub(NAME)
    image = Image.effect_noise((24, 20), 80).convert("RGB")
    image.save(tmp_path / "image.png")
    (code,) = re.findall(r"```python\n(.*?)```", card(hub), re.DOTALL)
    (in_one_step,) = re.findall(r"In one step: `(.*?)`", card(hub))
    code += f"import transformers\nassert {in_one_step}.equal(image_tokens[0])\n"

    result = run_without_the_package(code + "print(type(model).__module__, image_tokens.tolist())", tmp_path)

    assert result.returncode == 0, result.stderr
    # One commit for all, so transformers has no reason to announce every file of code.
    assert "A new version of the following files" not in result.stderr and "revision=revision" in in_one_step
    pixel_values = VQImageProcessor(image_size=16)(image, return_tensors="pt").pixel_values
    tokens = model.encode(pixel_values).image_tokens
    assert "transformers_modules" in result.stdout and str(tokens.tolist()) in result.stdout
    assert Image.open(tmp_path / "reconstruction.png").size == (16, 16)


def test_the_method_of_a_model_does_the_same(hub: HubServer) -> None:
    """`model.push_to_hub` writes our card and the image processor, not transformers' generic card."""
    tiny().push_to_hub(NAME, metrics=METRICS)
    by_method = hub.store.files(NAME)
    hf_vq.push_to_hub(tiny(), NAME, metrics=METRICS)

    assert hub.store.files(NAME) == by_method
    assert "23.46" in card(hub) and "preprocessor_config.json" in by_method


def test_nothing_new_makes_no_commit(hub: HubServer) -> None:
    """The same model again gives the URL of the commit that has it."""
    first = hf_vq.push_to_hub(tiny(), NAME)

    assert hf_vq.push_to_hub(tiny(), NAME) == first
    assert len(titles(hub)) == 2


def test_an_image_processor_of_ones_own_goes_along(hub: HubServer) -> None:
    """The default comes from the configuration; another one is pushed as it is."""
    hf_vq.push_to_hub(tiny(num_channels=1), "default")
    hf_vq.push_to_hub(tiny(), "other", image_processor=VQImageProcessor(image_size=16, resample=0))

    default, other = (VQImageProcessor.from_pretrained(f"alice/{name}") for name in ("default", "other"))
    assert default.num_channels == 1 and default.crop_size["height"] == 16 and default.resample == 3
    assert other.resample == 0


def test_a_persons_card_is_kept_and_our_part_is_renewed(hub: HubServer) -> None:
    """Text and metadata that a person wrote survive every push; the numbers are those of the last one."""
    hub.store.create("models", NAME, private=False)
    hub.store.write(NAME, "README.md", PERSONS_CARD.encode())
    hf_vq.push_to_hub(tiny(), NAME, metrics={"psnr": 11.0, "mse": 0.5}, license="apache-2.0")
    hf_vq.push_to_hub(tiny(), NAME, metrics={"psnr": 22.0}, license="apache-2.0")

    merged = ModelCard(card(hub))
    assert merged.text.startswith("# My tokenizer\n\nRead this first.\n\n<!-- hf_vq: begin")
    assert merged.text.count("hf_vq: begin") == 1 and "# vq\n" not in merged.text
    assert "| 22.00 |" in merged.text and "| 11.00 |" not in merged.text and "## License\n\nmit\n" in merged.text
    data = merged.data.to_dict()
    assert data["license"] == "mit" and data["language"] == ["en"] and data["library_name"] == "transformers"
    assert data["tags"][0] == "emoji" and "image-tokenizer" in data["tags"]
    assert [(result.metric_type, result.metric_value) for result in merged.data["eval_results"]] == [("psnr", 22.0)]


def test_transformers_own_push_keeps_a_card_too(hub: HubServer, tmp_path: Path) -> None:
    """Where the package is not installed, the model's inherited method leaves the card as it was."""
    hf_vq.push_to_hub(tiny(), NAME)
    before = card(hub)
    code = f"""
from transformers import AutoModel
model = AutoModel.from_pretrained("{NAME}", trust_remote_code=True)
model.encoder.conv[0].weight.data.zero_()
model.push_to_hub("{NAME}")
"""
    result = run_without_the_package(code, tmp_path)

    assert result.returncode == 0, result.stderr
    assert titles(hub)[0] == "Upload model" and card(hub) == before
    assert hf_vq.from_hub(NAME)[0].state_dict()["encoder.conv.0.weight"].abs().sum() == 0


def test_a_card_that_cannot_be_filled_in_stops_the_push(hub: HubServer) -> None:
    """With one of our two comments gone it is not clear what is ours: nothing is uploaded, the message says so."""
    hf_vq.push_to_hub(tiny(), NAME)
    hub.store.write(NAME, "README.md", card(hub).replace("<!-- hf_vq: end -->", "").encode())
    hub.requests.clear()

    with pytest.raises(ValueError, match="Restore the missing one"):
        hf_vq.push_to_hub(tiny(1), NAME)
    assert titles(hub)[0] == "Update README.md"
    assert not [path for method, path in hub.requests if "preupload" in path or method == "PUT"]


def test_an_edit_during_a_push_is_not_overwritten(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that a person saves while the weights are under way stays; the second attempt keeps it too."""
    hf_vq.push_to_hub(tiny(), NAME)
    upload = HfApi.preupload_lfs_files

    def edited_meanwhile(api: HfApi, *args: Any, **kwargs: Any) -> Any:
        if "Mind this" not in card(hub):
            hub.store.write(NAME, "README.md", card(hub).replace("# vq\n", "# vq\n\nMind this.\n").encode())
        return upload(api, *args, **kwargs)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", edited_meanwhile)
    with pytest.raises(HubError, match="the branch has moved"):
        hf_vq.push_to_hub(tiny(1), NAME)
    assert titles(hub)[0] == "Update README.md"

    hf_vq.push_to_hub(tiny(1), NAME)
    assert "# vq\n\nMind this.\n" in card(hub) and titles(hub)[0] == "Upload VQModel"


def test_a_branch_that_does_not_exist_is_made(hub: HubServer) -> None:
    """The push goes there alone; the next one finds it."""
    hf_vq.push_to_hub(tiny(0), NAME, metrics={"psnr": 11.0})
    hf_vq.push_to_hub(tiny(1), NAME, revision="v2", metrics={"psnr": 22.0})
    hf_vq.push_to_hub(tiny(2), NAME, revision="v2", metrics={"psnr": 33.0})

    assert titles(hub, "v2") == ["Upload VQModel", "Upload VQModel", "Upload VQModel", "initial commit"]
    assert "| 11.00 |" in card(hub) and "| 33.00 |" in card(hub, "v2")
    assert 'model_info(name, revision="v2").sha' in card(hub, "v2") and "model_info(name).sha" in card(hub)
    assert not torch.equal(hf_vq.from_hub(NAME)[0].quantize.get_codebook(), tiny(2).quantize.get_codebook())
    assert torch.equal(hf_vq.from_hub(NAME, revision="v2")[0].quantize.get_codebook(), tiny(2).quantize.get_codebook())


def test_a_pull_request_leaves_the_branch_alone(hub: HubServer) -> None:
    """Anyone who sees a repository may propose a model; `main` stays as it was."""
    hf_vq.push_to_hub(tiny(0), NAME)
    commit = hf_vq.push_to_hub(tiny(1), NAME, create_pr=True, token="hf_bob")

    assert commit.pr_url == f"{hub.url}/{NAME}/discussions/1" and len(titles(hub)) == 2
    proposed, _ = hf_vq.from_hub(NAME, revision="refs/pr/1")
    assert torch.equal(proposed.quantize.get_codebook(), tiny(1).quantize.get_codebook())
    with pytest.raises(ValueError, match="opened against 'main'"):
        hf_vq.push_to_hub(tiny(1), NAME, create_pr=True, revision="v2")


def test_private_is_kept_or_refused(hub: HubServer) -> None:
    """A repository that is public already is not made to look private."""
    hf_vq.push_to_hub(tiny(), NAME)
    hub.requests.clear()

    with pytest.raises(HubError, match="already exists and is public"):
        hf_vq.push_to_hub(tiny(), NAME, private=True)
    assert not [path for _, path in hub.requests if "preupload" in path]


@pytest.mark.parametrize("token", ["hf_bob", "hf_nobody", False])
def test_who_may_not_write_is_told_so(hub: HubServer, token: str | bool) -> None:
    """A foreign namespace, an unknown token, no token."""
    with pytest.raises(HubError, match="(?s)Cannot create or open.*'alice/new'.*Log in as someone who may write"):
        hf_vq.push_to_hub(tiny(), "alice/new", token=token)
    hf_vq.push_to_hub(tiny(), NAME)
    with pytest.raises(HubError):
        hf_vq.push_to_hub(tiny(1), NAME, token=token)
    assert len(titles(hub)) == 2


def test_a_tag_is_not_moved(hub: HubServer) -> None:
    """Tags stay where they are; the message says to use a branch."""
    hf_vq.push_to_hub(tiny(), NAME)
    HfApi().create_tag(NAME, tag="v1.0")

    with pytest.raises(ValueError, match="'v1.0' is a tag"):
        hf_vq.push_to_hub(tiny(1), NAME, revision="v1.0")


def test_weights_cut_otherwise_replace_the_old_ones(hub: HubServer) -> None:
    """Shards and a whole file never lie beside each other: a loader would take the old ones."""
    whole, shards = r"model\.safetensors", r"model-0000\d-of-0000\d\.safetensors|model\.safetensors\.index\.json"
    for seed, size, pattern in ((0, "50GB", whole), (1, "8KB", shards), (2, "50GB", whole)):
        hf_vq.push_to_hub(tiny(seed), NAME, max_shard_size=size)
        weights = [path for path in hub.store.files(NAME) if "safetensors" in path]
        assert weights and all(re.fullmatch(pattern, path) for path in weights)
        loaded, _ = hf_vq.from_hub(NAME)
        assert torch.equal(loaded.quantize.get_codebook(), tiny(seed).quantize.get_codebook())


def test_shards_of_another_split_stay(hub: HubServer, tmp_path: Path) -> None:
    """A split cut in fewer shards replaces its own old ones, not those of a split that was pushed from elsewhere."""
    for number, names in enumerate((["train-00000", "train-00001"], ["test-00000"], ["train-00000"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / f"{name}.parquet").write_bytes(f"{number} {name}".encode())
        publish_folder(folder, "alice/tokens", repo_type="dataset")

    files = hub.store.files("alice/tokens", kind="datasets")
    assert {name for name in files if name.endswith(".parquet")} == {"train-00000.parquet", "test-00000.parquet"}
    assert hub.store.read("alice/tokens", "train-00000.parquet", kind="datasets") == b"2 train-00000"


@pytest.mark.parametrize("arguments", [{"create_pr": True, "revision": "dev"}, {"images": ["missing.png"]}])
def test_wrong_arguments_leave_no_empty_repository(hub: HubServer, arguments: dict[str, Any]) -> None:
    """They are found before anything is made on the Hub."""
    with pytest.raises((ValueError, OSError)):
        hf_vq.push_to_hub(tiny(), NAME, **arguments)

    assert not hub.store.repositories


def test_the_image_processor_beside_the_weights_goes_along(hub: HubServer, tmp_path: Path) -> None:
    """That of the folder, or of the commit, that the model was loaded from: another would give other tokens."""
    tiny(pixel_range=[0.0, 1.0]).save_pretrained(tmp_path)
    VQImageProcessor(image_size=16, do_normalize=False, resample=0).save_pretrained(tmp_path)
    hf_vq.push_to_hub(VQModel.from_pretrained(tmp_path), NAME)
    loaded, processor = hf_vq.from_hub(NAME)
    hf_vq.push_to_hub(loaded, "alice/copy")

    for found in (processor, hf_vq.from_hub("alice/copy")[1]):
        assert not found.do_normalize and found.resample == 0


def test_the_picture_shows_images_as_they_are(hub: HubServer) -> None:
    """Also those of a model whose pixels are in [0, 1]."""
    gray = Image.new("RGB", (16, 16), (60, 60, 60))
    shown = []
    for pixel_range in ([-1.0, 1.0], [0.0, 1.0]):
        model = tiny(pixel_range=pixel_range)
        processor = VQImageProcessor.for_config(model.config)
        picture = reconstruction_picture(model, processor, [gray]).convert("L")
        shown.append({level: count for count, level in picture.getcolors(1 << 16) or []})

    # A whole image of that level, not an edge of a letter.
    assert shown[0][60] > 10_000 and abs(shown[0][60] - shown[1][60]) < 100
