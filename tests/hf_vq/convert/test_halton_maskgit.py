"""Generators of Halton-MaskGIT: the logits of an independent re-implementation."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_vq import VQModel
from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict
from hf_vq.convert.halton_maskgit import convert_generator, convert_generator_state_dict

FOLDER = Path(__file__).parent
GENERATORS = SimpleNamespace(**runpy.run_path(str(FOLDER / "halton_reference.py")))
REFERENCES = SimpleNamespace(**runpy.run_path(str(FOLDER / "vqgan_references.py")))


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A small generator, all of whose weights count."""
    torch.manual_seed(0)
    model = GENERATORS.Generator()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of LlamaGen's layout, with 4 x 4 tokens of 8 px."""
    path = tmp_path_factory.mktemp("tokenizer") / "vq.pt"
    torch.save({"model": REFERENCES.LlamaGen().state_dict()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@torch.no_grad()
def test_logits(prefix: str, theirs: Any, tokenizer: Path, tmp_path: Path) -> None:
    """Of visible and hidden tokens, of classes and of none; also as compiled and distributed models are saved."""
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    torch.save({"iter": 3, "model_state_dict": state, "optimizer_state_dict": None}, tmp_path / "small.pth")

    conversion = convert_generator(tmp_path / "small.pth", tokenizer, num_attention_heads=4)

    model, reference = conversion.model.double(), copy.deepcopy(theirs).double()
    config = model.config
    assert (config.grid_size, config.num_classes, config.vq_config.image_size) == ((4, 4), 5, 8)
    draw = torch.Generator().manual_seed(0)
    tokens, mask = torch.randint(64, (3, 4, 4), generator=draw), torch.rand(3, 4, 4, generator=draw) < 0.6
    ours = model(image_tokens=tokens, mask=mask, class_labels=torch.tensor([0, 4, -1])).logits
    expected = reference(tokens.masked_fill(mask, 64), torch.tensor([0, 4, 5]))[..., :64].unflatten(1, (4, 4))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)  # the changed weights are rounded to float32
    assert expected.std() > 0.1
    assert model.generate(class_labels=[1], num_steps=2, sampler="halton").image_tokens.shape == (1, 4, 4)


def test_the_file_is_told_apart_from_tokenizers(theirs: Any, tokenizer: Path) -> None:
    """Each of the two says where the other belongs."""
    with pytest.raises(ValueError, match="generator of Halton-MaskGIT.*`--tokenizer`"):
        convert_state_dict(theirs.state_dict())
    with pytest.raises(ValueError, match="not weights of a generator of Halton-MaskGIT"):
        convert_generator(tokenizer, tokenizer)


def test_a_tokenizer_of_ours_must_fit(theirs: Any, tokenizer: Path, tmp_path: Path) -> None:
    """One of the right size and number of codes is taken; another is told what was expected."""
    for size in (8, 16):
        convert_checkpoint(tokenizer, image_size=size).model.save_pretrained(tmp_path / str(size))
    state = theirs.state_dict()

    conversion = convert_generator_state_dict(state, tmp_path / "8", num_attention_heads=4)

    assert conversion.model.tokenizer.config.norm == "l2"
    with pytest.raises(ValueError, match=r"for 4 x 4 tokens of 64 codes.*8 x 8 tokens.*`--image_size 8`"):
        convert_generator_state_dict(state, tmp_path / "16", num_attention_heads=4)
    with pytest.raises(ValueError, match="width of 64. Say the number of heads"):
        convert_generator_state_dict(state, VQModel.from_pretrained(tmp_path / "8"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_proj.weight": torch.zeros(1)}, "joins 2 x 2 tokens"),
        ({"reg_tokens.weight": torch.zeros(2, 64)}, r"'transformer.register' would have the shape \(128,\)"),
        ({"surprise": torch.zeros(1)}, "not known: 'surprise'"),
        ({"transformer.layers.1.ln1.weight": None}, "missing: 'transformer.layers.1.ln1.weight'"),
    ],
)
def test_other_generators_are_refused(change: dict[str, Any], words: str, theirs: Any, tokenizer: Path) -> None:
    """With the reason, or with the names."""
    state = {key: value for key, value in (theirs.state_dict() | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        convert_generator_state_dict(state, tokenizer, num_attention_heads=4)
