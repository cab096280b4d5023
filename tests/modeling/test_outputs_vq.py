"""What models return: short to print, and with types that type checkers see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import assert_type

from hf_vq import (
    GroupVectorQuant,
    MaskGitConfig,
    MaskGitModel,
    VectorQuant,
    VQConfig,
    VQImageClassificationConfig,
    VQModel,
    VQModelForImageClassification,
    no_vq,
)
from hf_vq.modeling import (
    MaskGitGenerateOutput,
    MaskGitOutput,
    VQDecoderOutput,
    VQEncoderOutput,
    VQImageClassifierOutput,
    VQModelOutput,
)
from hf_vq.modeling.outputs_vq import in_short

FIELDS: dict[str, Any] = {"architecture": "sqvae", "image_size": 16, "base_channels": 8, "num_codes": 16}
PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


def generator() -> MaskGitModel:
    """A small generator."""
    fields: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return MaskGitModel(MaskGitConfig(vq_config=VQConfig(**FIELDS, embed_dim=4), **fields)).eval()


def test_every_output_prints_in_short() -> None:
    """A line for each field, with the name first: no values of tensors, however large or small they are."""
    tokenizer = VQModel(VQConfig(**FIELDS)).eval()
    small: dict[str, Any] = {"image_size": 32, "num_codes": 8, "num_labels": 2}
    classifier = VQModelForImageClassification(VQImageClassificationConfig(**small))
    maskgit = generator()
    encoded = tokenizer.encode(PIXELS, output_hidden_states=True)
    outputs = [
        encoded,
        tokenizer.decode(encoded.image_tokens),
        tokenizer(PIXELS),
        maskgit(pixel_values=PIXELS),
        maskgit.generate(num_images=3, num_steps=1),
        classifier(torch.zeros(2, 3, 32, 32), labels=torch.tensor([0, 1])),
        VectorQuant(4, 8)(torch.randn(2, 4, 5))[1],
        GroupVectorQuant(4, 8, groups=2)(torch.randn(2, 4, 5))[1],
    ]
    for output in outputs:
        first, *lines, last = str(output).splitlines()
        assert first == f"{type(output).__name__}(" and last == ")"
        assert [line.split(":")[0].strip() for line in lines] == list(output)
        assert max(map(len, lines)) < 90 and "tensor" not in str(output)
        assert repr(output) == str(output)
    assert "    image_tokens: int64 (2, 4, 4), " in str(encoded)
    assert "    last_hidden_state: float32 (2, 8, 4, 4), -" in str(encoded)
    assert "    images: image of 16 x 16 pixels and 2 more\n" in str(outputs[4])
    with no_vq(tokenizer):
        assert "image_tokens" not in str(tokenizer.encode(PIXELS))


def test_values_in_short() -> None:
    """Numbers as they are, masks by their count, and nothing is asked of tensors that have no values."""
    assert in_short(torch.tensor(0.123456789)) == "0.123457"
    assert in_short(torch.tensor([[True, False, True]])) == "bool (1, 3), 2 of 3 True"
    assert in_short(torch.tensor([0.5, torch.nan])) == "float32 (2,), nan to nan"
    assert in_short(torch.ones(3, dtype=torch.bfloat16, requires_grad=True)) == "bfloat16 (3,), 1 to 1"
    assert in_short(torch.empty(0, 4)) == "float32 (0, 4)"
    assert in_short(torch.empty(2, 4, device="meta")) == "float32 (2, 4) on meta"
    assert in_short((torch.tensor(1), torch.tensor(2))) == "1 and 1 more"
    assert in_short([]) == "[]" and in_short(3) == "3"


if TYPE_CHECKING:  # `make lint` fails here where a decorator hides the type of a method

    def types_of_methods(
        tokenizer: VQModel, maskgit: MaskGitModel, classifier: VQModelForImageClassification, pixels: torch.Tensor
    ) -> None:
        """What type checkers see of the methods that people call."""
        encoded = assert_type(tokenizer.encode(pixels), VQEncoderOutput)
        assert_type(encoded.image_tokens, torch.Tensor)
        assert_type(tokenizer.decode(encoded.image_tokens), VQDecoderOutput)
        assert_type(tokenizer.decode(encoded.image_tokens).decoded_pixel_values, torch.Tensor)
        assert_type(tokenizer.forward(pixels), VQModelOutput)
        assert_type(tokenizer.get_codebook_entry(encoded.image_tokens), torch.Tensor)
        assert_type(maskgit.forward(pixel_values=pixels), MaskGitOutput)
        assert_type(maskgit.encode(pixels), torch.Tensor)
        assert_type(maskgit.generate(3), MaskGitGenerateOutput)
        assert_type(classifier.forward(pixels), VQImageClassifierOutput)
