"""What a file does not say is read beside it, or told; files of equal names are told apart."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))
COMPARING = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comparing.py"))))
DIFFUSERS: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [32, 64],
    "latent_channels": 6,
    "num_vq_embeddings": 64,
}


def assumed(conversion: Any, words: str) -> bool:
    """Whether one of the assumptions holds these words."""
    return any(words in each for each in conversion.assumptions)


def test_ibq_takes_the_largest_dot_product(tmp_path: Path) -> None:
    """All tokens are equal, though the nearest codes are others; the repository's configuration names the layout."""
    theirs = COMPARING.randomize(REFERENCES.IBQ(ch_mult=(1, 2), n_embed=200))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "imagenet256.ckpt")
    (tmp_path / "config.json").write_text(json.dumps({"Name": ["IBQ"]}))

    conversion = convert_checkpoint(tmp_path)

    assert conversion.layout == conversion.model.config.quantizer_type == "ibq"
    COMPARING.assert_same(conversion.model, theirs)
    as_taming = convert_checkpoint(tmp_path, layout="taming")
    with torch.no_grad():
        nearest = as_taming.model.encode(COMPARING.pixels()).image_tokens
        ours = conversion.model.encode(COMPARING.pixels()).image_tokens
    assert (nearest != ours).float().mean() > 0.3


def test_a_bare_file_of_tamings_names_says_that_it_could_be_ibq() -> None:
    """Without a configuration the names cannot tell, `layout` can."""
    theirs = COMPARING.randomize(REFERENCES.IBQ())
    conversion = convert_state_dict(theirs.state_dict())

    assert conversion.layout == "taming" and assumed(conversion, "need `--layout ibq`")
    ibq = convert_state_dict(theirs.state_dict(), layout="ibq", image_size=64)
    assert ibq.assumptions == []
    COMPARING.assert_same(ibq.model, theirs)


@pytest.mark.parametrize("said", [False, True, None])
def test_llamagens_normalization_follows_its_configuration(said: bool | None, tmp_path: Path) -> None:
    """A bare file is taken as normalized, and the assumption is told."""
    theirs = COMPARING.randomize(REFERENCES.LlamaGen())
    theirs.unit_norm = said is not False
    torch.save({"model": theirs.state_dict()}, tmp_path / "vq.pt")
    if said is not None:
        (tmp_path / "config.json").write_text(json.dumps({"codebook_l2_norm": said, "codebook_size": 64}))

    conversion = convert_checkpoint(tmp_path, image_size=32)

    assert assumed(conversion, "`codebook_l2_norm`") == (said is None)
    COMPARING.assert_same(conversion.model, theirs)


def test_the_number_of_groups_is_told_where_nothing_says_it(tmp_path: Path) -> None:
    """A configuration gives other tokens than the default would."""
    theirs: Any = COMPARING.randomize(diffusers.VQModel(**DIFFUSERS, norm_num_groups=16))
    theirs.save_pretrained(tmp_path)

    bare = convert_state_dict(theirs.state_dict())
    told = convert_checkpoint(tmp_path)

    assert bare.model.config.norm_num_groups == 32 and assumed(bare, "each group norm has 32 groups")
    assert told.model.config.norm_num_groups == 16 and not assumed(told, "group norm")
    COMPARING.assert_same(
        told.model, theirs, lambda theirs, images: theirs.quantize(theirs.encode(images).latents)[2][2],
        lambda theirs, tokens: theirs.decode(theirs.encode(COMPARING.pixels().double()).latents).sample,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pipeline", "pixel_range", "is_told"),
    [
        ("AmusedPipeline", [0.0, 1.0], False),
        ("AmusedInpaintPipeline", [0.0, 1.0], False),
        ("VQDiffusionPipeline", [-1.0, 1.0], False),
        ("StrangersPipeline", [-1.0, 1.0], True),
        (None, [-1.0, 1.0], True),
    ],
)
def test_the_pipeline_tells_the_range_of_pixels(
    pipeline: str | None, pixel_range: list[float], is_told: bool, tmp_path: Path
) -> None:
    """aMUSEd's network takes [0, 1], which only the `model_index.json` beside its folder shows."""
    theirs: Any = diffusers.VQModel(**DIFFUSERS)
    theirs.save_pretrained(tmp_path / "vqvae")
    index = {"_class_name": pipeline, "vqvae": ["diffusers", "VQModel"]}
    if pipeline is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index))

    conversion = convert_checkpoint(tmp_path / "vqvae")

    assert conversion.model.config.pixel_range == pixel_range
    assert assumed(conversion, "takes pixels in [-1, 1]") == is_told
    given = convert_checkpoint(tmp_path / "vqvae", pixel_range=(-1, 1))
    assert given.model.config.pixel_range == [-1.0, 1.0] and not assumed(given, "pixels")


def test_an_index_of_another_folder_does_not_count(tmp_path: Path) -> None:
    """It must name the tokenizer's folder as a part of the pipeline."""
    theirs: Any = diffusers.VQModel(**DIFFUSERS)
    theirs.save_pretrained(tmp_path / "mine")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AmusedPipeline", "vqvae": []}))

    assert convert_checkpoint(tmp_path / "mine").model.config.pixel_range == [-1.0, 1.0]


def test_the_image_size_is_told_where_nothing_says_it() -> None:
    """A number that is given, or a configuration's resolution, is no assumption."""
    state = REFERENCES.LlamaGen().state_dict()
    config = {"resolution": 64, "codebook_l2_norm": True}

    assert assumed(convert_state_dict(state), "images are of 256 px")
    assert convert_state_dict(state, image_size=32, source_config=config).assumptions == []
    conversion = convert_state_dict(state, source_config=config)
    assert conversion.assumptions == [] and conversion.model.config.image_size == 64


YAML = """
model:
  {kind}: {module}
  {fields}:
    n_embed: 64
    ddconfig: {{resolution: 64, ch_mult: [1, 2]}}
"""


@pytest.mark.parametrize("name", ["vqgan.yaml", "model.yaml", "../configs/model.yaml"])
def test_the_yaml_of_taming_tells_size_and_class(name: str, tmp_path: Path) -> None:
    """As Meta's Chameleon and the downloads of taming-transformers have it beside the weights."""
    theirs = COMPARING.randomize(REFERENCES.Taming())
    (tmp_path / "ckpts").mkdir()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "ckpts" / "vqgan.ckpt")
    path = tmp_path / "ckpts" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(YAML.format(kind="target", module="taming.models.vqgan.VQModel", fields="params"))

    conversion = convert_checkpoint(tmp_path / "ckpts")

    assert conversion.assumptions == [] and conversion.model.config.image_size == 64
    COMPARING.assert_same(conversion.model, theirs)


def test_the_yaml_of_ibq_names_its_layout(tmp_path: Path) -> None:
    """SEED-Voken's configurations have a `class_path`."""
    torch.save({"state_dict": REFERENCES.IBQ().state_dict()}, tmp_path / "imagenet256.ckpt")
    (tmp_path / "config.yaml").write_text(
        YAML.format(kind="class_path", module="src.IBQ.models.ibqgan.IBQ", fields="init_args")
    )
    assert convert_checkpoint(tmp_path).layout == "ibq"


@pytest.mark.parametrize("text", ["- 1", "a: [", "!!python/object/apply:os.system ['exit 3']", "model: 3"])
def test_strange_yaml(text: str, tmp_path: Path) -> None:
    """Damaged files are named and run nothing; those of others say nothing."""
    torch.save(REFERENCES.Taming().state_dict(), tmp_path / "vqgan.ckpt")
    (tmp_path / "model.yaml").write_text(text)
    if text == "model: 3":
        assert assumed(convert_checkpoint(tmp_path), "images are of 256 px")
        return
    with pytest.raises(ValueError, match="'model.yaml' cannot be read"):
        convert_checkpoint(tmp_path)
