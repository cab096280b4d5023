"""FiniteScalarQuant: the paper's formula, the other library's results, and a kind of quantizer like the others."""

import itertools
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_vq import FiniteScalarQuant, VQConfig, VQImageClassificationConfig, VQModel

LEVELS = [[8, 5, 5, 5], [7, 5, 5], [3, 4, 2], [16]]


def paper(z: list[float], levels: list[int], activation: str) -> tuple[list[float], int]:
    """Codes and id of one vector, in plain Python: eq. 1 of Mentzer et al. and their appendix A.1."""
    codes, token, stride = [], 0, 1
    for value, level in zip(z, levels, strict=True):
        half = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        if activation == "tanh":
            bounded = math.tanh(value + math.atanh(offset / half)) * half - offset
        else:  # the inverse of 2 sigmoid(1.6 x) - 1 is log((1 + y) / (1 - y)) / 1.6
            y = offset / half
            shifted = value + math.log((1 + y) / (1 - y)) / 1.6
            bounded = (2 / (1 + math.exp(-1.6 * shifted)) - 1) * half - offset
        number = round(bounded)
        codes.append(number / (level // 2))
        token += (number + level // 2) * stride
        stride *= level
    return codes, token


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("levels", LEVELS)
def test_tokens_and_codes_are_the_papers(levels, activation):
    """In float64, for vectors in the middle and far outside."""
    torch.manual_seed(0)
    layer = FiniteScalarQuant(levels=levels, activation=activation, dim=-1)
    z = torch.randn(300, len(levels), dtype=torch.double) * torch.logspace(-1, 1, 300, dtype=torch.double)[:, None]
    z_q, out = layer(z)
    expected = [paper(vector, levels, activation) for vector in z.tolist()]

    assert out.q.squeeze(-1).tolist() == [token for _, token in expected]
    torch.testing.assert_close(z_q, torch.tensor([codes for codes, _ in expected], dtype=torch.double))


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [7, 5, 5], [3, 4, 16]])
def test_tokens_codes_and_gradients_are_those_of_vector_quantize_pytorch(levels):
    """For the same inputs, as images and as sequences, and every id stands for the same code."""
    library = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    theirs, ours = library.FSQ(levels), FiniteScalarQuant(levels=levels)
    z = 2 * torch.randn(4, len(levels), 16, 16)
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    z_q, out = ours(mine)
    expected, tokens = theirs(other)

    assert torch.equal(out.q.squeeze(-1), tokens.long())
    torch.testing.assert_close(z_q, expected)
    weights = torch.randn_like(z)
    for value in (z_q, expected):
        (value * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)
    assert torch.equal(ours.get_codebook(), theirs.implicit_codebook)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_are_all_combinations_of_levels(levels):
    """`get_codebook`, `lookup` and the ids agree: every code, quantized again under the identity, has its own id."""
    layer = FiniteScalarQuant(levels=levels, dim=-1)
    codes = layer.get_codebook()
    grids = [torch.arange(-(level // 2), level - level // 2) / (level // 2) for level in levels]
    expected = torch.tensor([row[::-1] for row in itertools.product(*(grid.tolist() for grid in reversed(grids)))])

    assert layer.num_codes == len(codes) == math.prod(levels) and layer.code_dim == len(levels)
    torch.testing.assert_close(codes, expected)
    assert torch.equal(layer.lookup(torch.arange(layer.num_codes)[:, None]), codes)
    assert layer.lookup(torch.tensor([3])).shape == (1, len(levels))


@pytest.mark.parametrize("training", [True, False])
def test_it_keeps_the_contract_of_layers(training):
    """Values equal `lookup` to the bit, loss 0, statistics, int64 ids, float32 arithmetic, any dtype and axis."""
    torch.manual_seed(0)
    layer = FiniteScalarQuant(levels=[8, 5, 5, 5]).train(training)
    z = torch.randn(2, 4, 6, 6, requires_grad=True)
    z_q, out = layer(z)

    assert torch.equal(z_q, layer.lookup(out.q)) and out.q.dtype == torch.long and out.q.shape == (2, 6, 6, 1)
    assert out.loss == 0 and 1 < out.perplexity <= 72 and out.usage == len(out.q.unique()) / 1000
    assert out.z.shape == out.z_q.shape == (2, 6, 6, 1, 4) and out.d.shape == (2, 6, 6, 1)
    torch.testing.assert_close(out.d, (out.z - out.z_q).norm(dim=-1))
    torch.testing.assert_close(layer.unquantized(z), out.z.squeeze(-2).moveaxis(-1, 1))
    assert not out.z_q.requires_grad and list(layer.parameters()) == list(layer.buffers()) == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, half_out = layer(z.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.equal(half, layer.lookup(half_out.q).bfloat16())
    assert torch.equal(half_out.q, layer(z.bfloat16().float())[1].q)


def test_inputs_that_are_not_finite_get_ids_that_exist():
    """NaN stays NaN in the values, where a loss will show it."""
    layer = FiniteScalarQuant(levels=[8, 5], dim=-1)
    z_q, out = layer(torch.tensor([[float("nan"), 0.0], [float("inf"), -float("inf")]]))

    assert z_q[0, 0].isnan() and out.q.min() >= 0 and out.q.max() < 40
    assert z_q[1].tolist() == [0.75, -1.0]
    assert layer(torch.zeros(0, 2))[1].perplexity == 0


def test_sigmoid_makes_a_normal_channel_uniform():
    """What iFSQ is for: before rounding, its distribution is uniform to 2%, that of tanh is not."""
    torch.manual_seed(0)
    z = torch.randn(20_000, 1)
    distance = {}
    for name in ("tanh", "sigmoid"):
        found = FiniteScalarQuant(levels=[9], dim=-1, activation=name).unquantized(z).flatten().sort().values
        distance[name] = (found - torch.linspace(-1, 1, len(found))).abs().max() / 2

    assert distance["sigmoid"] < 0.02 < 0.05 < distance["tanh"]


@pytest.mark.compiles
def test_it_compiles_and_exports():
    """One graph, with the values of plain execution."""
    layer = FiniteScalarQuant(levels=[8, 5, 5]).eval()
    z = torch.randn(2, 3, 4, 4)
    torch._dynamo.reset()
    for traced in (
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        torch.export.export(layer, (z,)).module(),
    ):
        assert torch.equal(traced(z)[1].q, layer(z)[1].q)


def test_codes_that_are_too_many_to_list():
    """They can be looked up one by one; the codebook tells why it is not listed."""
    layer = FiniteScalarQuant(levels=[16, 16, 16, 16, 32], dim=-1)
    with pytest.raises(ValueError, match="2,097,152 codes, too many to list"):
        layer.get_codebook()
    q = torch.tensor([[layer.num_codes - 1]])
    assert torch.equal(layer(10 * torch.ones(1, 5))[1].q, q)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": [8, 5, 5, 5], "embed_dim": 4, "num_codes": 512}, "`num_codes` must be the product of `levels`"),
        ({"levels": [8, 5, 5, 5]}, "`embed_dim` must be the number of `levels`, got 8 channels and 4 levels"),
        ({"embed_dim": 4}, "`levels` must be the number of levels of each channel"),
        ({"levels": [8, 1], "embed_dim": 2}, "at least 2"),
        ({"levels": [], "embed_dim": 1}, "at least 2"),
        ({"levels": [256] * 4, "embed_dim": 4}, "at most 16,777,216 codes"),
        ({"levels": [8, 5.5], "embed_dim": 2}, "'levels' expected"),
        ({"levels": [8, 5], "embed_dim": 2, "level_activation": "relu"}, "'tanh', 'sigmoid'"),
        ({"levels": [8, 5], "embed_dim": 2, "num_groups": 2}, "`num_groups=2` needs"),
        (
            {"quantizer_type": "vector", "levels": [8, 5]},
            '`levels=.8, 5.` needs `quantizer_type` "fsq" or',
        ),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    """Each error names the field, and what was expected."""
    with pytest.raises(StrictDataclassError, match=message):
        VQConfig(**{"quantizer_type": "fsq"} | fields)


def test_arguments_that_make_no_sense():
    """The layer refuses the same by the names of its arguments."""
    for arguments, message in (
        (dict(levels=[8, 5], num_codes=41), "num_codes must be the product of levels"),
        (dict(levels=[8, 5], feature_size=3), "feature_size must be the number of levels"),
        (dict(levels=[1]), "at least 2"),
        (dict(levels=[8, 5], activation="relu"), "activation must be one of 'tanh', 'sigmoid'"),
    ):
        with pytest.raises(ValueError, match=message):
            FiniteScalarQuant(**arguments)


def make_model(**fields):
    torch.manual_seed(0)
    settings = {"quantizer_type": "fsq", "levels": [8, 5, 5, 5], "embed_dim": 4}
    model = VQModel(VQConfig(architecture="sqvae", image_size=16, base_channels=8, **settings | fields))
    with torch.no_grad():
        model.quant_conv.weight.mul_(30)  # an untrained network's vectors are alike
    return model


def test_the_number_of_codes_is_the_product_of_the_levels():
    """Unless it is given; both classes of configurations know it."""
    for num_codes in ({}, {"num_codes": 1024}, {"num_codes": 1000}):
        assert make_model(**num_codes).config.num_codes == 1000
    config = VQImageClassificationConfig(quantizer_type="fsq", levels=(7, 5), quantized_size=2)
    assert config.num_codes == 35 and config.levels == [7, 5]


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_a_saved_model_comes_back_equal(tmp_path, activation):
    """Tokens, codes and pixels; nothing of the levels is lost on the way."""
    model = make_model(level_activation=activation).eval()
    pixel_values = torch.rand(2, 3, 16, 16) * 2 - 1
    model.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path)
    out, again = model(pixel_values), loaded(pixel_values)

    assert loaded.config.num_codes == 1000 and loaded.config.level_activation == activation
    assert torch.equal(out.image_tokens, again.image_tokens) and len(out.image_tokens.unique()) > 4
    assert torch.equal(out.decoded_pixel_values, again.decoded_pixel_values)
    assert torch.equal(loaded.decode(again.image_tokens).decoded_pixel_values, out.decoded_pixel_values)
