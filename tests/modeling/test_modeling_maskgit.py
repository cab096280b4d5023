"""MaskGitModel: its loss, its frozen tokenizer, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, VQModel
from hf_vq.modeling.transformer_maskgit import rotary_embedding

TOKENIZER = {
    "architecture": "sqvae",
    "image_size": 16,
    "base_channels": 8,
    "num_res_blocks": 1,
    "embed_dim": 4,
    "num_codes": 16,
}
GROUPED = TOKENIZER | {"quantizer_type": "residual", "num_groups": 2, "share_codebook": False}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = [
    {},
    {"position_type": "rotary", "class_conditioning": "prefix", "norm_type": "layernorm"},
    {"position_type": "rotary", "tie_word_embeddings": False},
    {"class_conditioning": "prefix"},
    {"qk_norm": "width", "modulates_last_norm": True},
]


def make_model(tokenizer=TOKENIZER, **fields):
    """Makes a small model with the same weights every time, and opens its gates, so that layers have an effect."""
    torch.manual_seed(0)
    fields = {"num_classes": 3, "dropout": 0.0} | SMALL | fields
    model = MaskGitModel(MaskGitConfig(vq_config=VQConfig(**tokenizer), **fields))
    with torch.no_grad():
        for layer in (*model.transformer.layers, model.transformer):
            if layer.modulation is not None:
                layer.modulation.weight.normal_(std=0.5)
                layer.modulation.bias.normal_(std=0.5)
        model.head.weight.normal_(std=0.5)
    return model.eval()


def make_tokens(model, batch=2, seed=0):
    """Draws random tokens of the tokenizer. Every id is possible."""
    config = model.config
    shape = (batch, *config.grid_size, config.num_groups)
    tokens = torch.randint(0, config.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
    if not config.vq_config.share_codebook:
        tokens = tokens + torch.arange(config.num_groups) * config.codebook_size
    return tokens.squeeze(-1) if config.num_groups == 1 else tokens


@pytest.mark.parametrize("tokenizer", [TOKENIZER, GROUPED], ids=["vector", "residual"])
@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: "-".join(map(str, fields.values())) or "default")
def test_shapes_and_gradients(fields, tokenizer):
    """There are logits for exactly the codes of each group, and gradients for all weights except the tokenizer's."""
    model = make_model(tokenizer, **fields).train()
    tokens = make_tokens(model)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    out = model(image_tokens=tokens, class_labels=torch.tensor([0, 2]), mask=mask)
    out.loss.backward()

    assert out.logits.shape == (*tokens.shape, model.config.codebook_size)
    assert model.head.out_features == model.config.num_groups * model.config.codebook_size
    assert torch.equal(out.image_tokens, tokens) and torch.equal(out.mask, mask)
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"tokenizer.{name}" for name, _ in model.tokenizer.named_parameters()}


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_the_loss_is_the_cross_entropy_of_hidden_tokens(weight):
    """Visible tokens count with `unmasked_loss_weight`, and eval mode does not smooth labels."""
    model = make_model(unmasked_loss_weight=weight)
    tokens = make_tokens(model)
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    out = model(image_tokens=tokens, mask=mask)
    losses = F.cross_entropy(out.logits.permute(0, 3, 1, 2), tokens, reduction="none")

    expected = (losses[mask].sum() + weight * losses[~mask].sum()) / (mask.sum() + weight * (~mask).sum())
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model(image_tokens=tokens, mask=mask, return_loss=False).loss is None


def test_training_smooths_labels():
    """In training mode the loss is torch's with `label_smoothing`."""
    model = make_model(label_smoothing=0.2, class_dropout=0.0).train()
    tokens = make_tokens(model)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    out = model(image_tokens=tokens, mask=mask)

    expected = F.cross_entropy(out.logits.flatten(0, 2), tokens.flatten(), label_smoothing=0.2)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert out.loss.item() != pytest.approx(F.cross_entropy(out.logits.flatten(0, 2), tokens.flatten()).item())


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: "-".join(map(str, fields.values())) or "default")
def test_hidden_tokens_are_hidden(fields):
    """Tokens under the mask change nothing. Visible tokens do, even if they are the first code."""
    model = make_model(**fields)
    tokens = make_tokens(model)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 1:3] = True
    other = tokens.masked_fill(mask, 5)
    logits = model(image_tokens=tokens, mask=mask).logits

    assert torch.equal(model(image_tokens=other, mask=mask).logits, logits)
    visible = model(image_tokens=tokens.masked_fill(mask, 0), mask=torch.zeros_like(mask)).logits
    assert not torch.allclose(visible, logits, atol=1e-3)
    assert not torch.allclose(model(image_tokens=(tokens + 1) % 16, mask=mask).logits, logits, atol=1e-3)


def test_groups_are_hidden_one_by_one():
    """One level of a cell may be visible while the next is hidden."""
    model = make_model(GROUPED)
    tokens = make_tokens(model)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[..., 1] = True
    logits = model(image_tokens=tokens, mask=mask).logits
    other = tokens.clone()
    other[..., 1] = 8 + (other[..., 1] + 1) % 8

    assert torch.equal(model(image_tokens=other, mask=mask).logits, logits)
    other[..., 0] = (other[..., 0] + 1) % 8
    assert not torch.allclose(model(image_tokens=other, mask=mask).logits, logits, atol=1e-3)


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: "-".join(map(str, fields.values())) or "default")
def test_cells_of_an_empty_canvas_differ(fields):
    """With everything hidden, the model still knows where a cell is, also with rotary positions."""
    model = make_model(**fields)
    tokens = make_tokens(model, batch=1)
    logits = model(image_tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool)).logits.flatten(1, 2)[0]

    assert torch.pdist(logits).min() > 1e-3


def test_rotations_tell_rows_from_columns():
    """The product of a rotated query and key depends on the differences of rows and of columns."""
    cosines, sines = rotary_embedding(4, 6, 8, torch.device("cpu"), torch.float64)
    vectors = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def turned(vector, cell):
        first, second = vector.chunk(2)
        return vector * cosines[cell] + torch.cat([-second, first]) * sines[cell]

    def product(query, key):
        (query_row, query_column), (key_row, key_column) = query, key
        cells = (1 + 6 * query_row + query_column, 1 + 6 * key_row + key_column)
        return (turned(vectors[0], cells[0]) @ turned(vectors[1], cells[1])).item()

    assert product((0, 0), (1, 2)) == pytest.approx(product((2, 3), (3, 5)), abs=1e-5)
    assert product((0, 0), (1, 2)) != pytest.approx(product((0, 0), (2, 1)), abs=1e-3)
    assert torch.equal(turned(vectors[0], 0), vectors[0])


def test_rotary_positions_take_any_grid():
    """Rotary positions take wider and higher grids than the tokenizer's. Learned positions refuse them."""
    tokens = torch.zeros(1, 3, 7, dtype=torch.long)
    mask = torch.ones_like(tokens, dtype=torch.bool)

    assert make_model(position_type="rotary")(image_tokens=tokens, mask=mask).logits.shape == (1, 3, 7, 16)
    with pytest.raises(ValueError, match="made for grids of 4 x 4 tokens, got 3 x 7.*rotary"):
        make_model()(image_tokens=tokens, mask=mask)


@pytest.mark.parametrize("conditioning", ["adaln_zero", "prefix"])
def test_the_class_matters(conditioning):
    """Two classes and no class give three different answers, and -1 means no class."""
    model = make_model(class_conditioning=conditioning)
    tokens = make_tokens(model, 1).expand(4, -1, -1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    logits = model(image_tokens=tokens, class_labels=torch.tensor([0, 1, -1, 0]), mask=mask).logits

    assert torch.pdist(logits[:3].flatten(1)).min() > 0.1
    assert torch.allclose(logits[0], logits[3], atol=1e-5)
    assert torch.allclose(logits[2], model(image_tokens=tokens, mask=mask).logits[0], atol=1e-5)


def test_training_drops_classes():
    """In training a share `class_dropout` of the images gets the null class, in eval mode none does."""
    model = make_model(class_dropout=0.5)
    seen = []
    model.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    tokens = make_tokens(model, 1).expand(400, -1, -1)
    labels = torch.ones(400, dtype=torch.long)
    model.train()(image_tokens=tokens, class_labels=labels, generator=torch.Generator().manual_seed(0))
    model.eval()(image_tokens=tokens, class_labels=labels)

    assert 160 < (seen[0] == 3).sum() < 240 and set(seen[0].tolist()) == {1, 3}
    assert seen[1].tolist() == [1] * 400


def test_masks_are_drawn_as_configured():
    """Without a mask, the generator draws one. Each image has its own share, spread as the schedule says."""
    model = make_model(mask_schedule="linear", mask_count="exact")
    tokens = make_tokens(model, 1).expand(500, -1, -1)
    masks = [model(image_tokens=tokens, generator=torch.Generator().manual_seed(seed)).mask for seed in (0, 0, 1)]
    counts = masks[0].flatten(1).sum(1)

    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert set(counts.tolist()) == set(range(1, 17))
    assert counts.float().mean().item() == pytest.approx(8, abs=0.7)
    square = make_model(mask_schedule="square")(image_tokens=tokens).mask.flatten(1).sum(1).float().mean().item()
    assert square == pytest.approx(16 * 2 / 3, abs=0.7)


def test_images_are_tokenized():
    """`pixel_values` give the same loss as their tokens."""
    model = make_model()
    pixel_values = torch.rand(2, 3, 16, 16) * 2 - 1
    tokens = model.tokenizer.encode(pixel_values).image_tokens
    mask = torch.ones_like(tokens, dtype=torch.bool)
    out = model(pixel_values=pixel_values, mask=mask)

    assert torch.equal(out.image_tokens, tokens)
    assert torch.equal(out.loss, model(image_tokens=tokens, mask=mask).loss)


def test_the_tokenizer_is_frozen(tmp_path):
    """Training changes nothing in it: it has no gradients, stays in eval mode, and its codebook follows no batches.

    Loading a checkpoint makes every weight trainable; not these.
    """
    ema = TOKENIZER | {"codebook_update": "ema", "sync_nu": 0.0, "alternating_steps": 0, "kmeans_init": True}
    model = make_model(ema)
    model.save_pretrained(tmp_path)
    for frozen in (model, MaskGitModel.from_pretrained(tmp_path)):
        frozen.train()
        before = {name: value.clone() for name, value in frozen.tokenizer.state_dict().items()}
        optimizer = torch.optim.SGD(frozen.parameters(), lr=1.0)
        for _ in range(3):
            frozen(pixel_values=torch.rand(4, 3, 16, 16) * 2 - 1).loss.backward()
            optimizer.step()

        assert not any(module.training for module in frozen.tokenizer.modules())
        assert not any(parameter.requires_grad for parameter in frozen.tokenizer.parameters())
        assert all(torch.equal(value, before[name]) for name, value in frozen.tokenizer.state_dict().items())
        assert frozen.training and frozen.transformer.training


def test_a_trained_tokenizer_is_copied():
    """The model copies its weights and leaves the original as it was, trainable and in training mode."""
    torch.manual_seed(1)
    tokenizer = VQModel(VQConfig(**TOKENIZER))
    tokenizer(torch.rand(4, 3, 16, 16))
    model = MaskGitModel(MaskGitConfig(vq_config=tokenizer.config, **SMALL), tokenizer=tokenizer)

    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, model.tokenizer.state_dict()[name])
    assert tokenizer.training and all(parameter.requires_grad for parameter in tokenizer.parameters())


def test_a_tokenizer_that_does_not_match_is_refused():
    """The message names the fields that differ."""
    tokenizer = VQModel(VQConfig(**TOKENIZER | {"num_codes": 8}))

    with pytest.raises(ValueError, match="num_codes is 8 instead of 16.*vq_config=tokenizer.config"):
        MaskGitModel(MaskGitConfig(vq_config=VQConfig(**TOKENIZER), **SMALL), tokenizer=tokenizer)


def test_initial_layers_are_the_identity():
    """With adaLN-zero the gates are shut before training, so depth changes nothing."""
    torch.manual_seed(0)
    model = MaskGitModel(MaskGitConfig(vq_config=VQConfig(**TOKENIZER), **SMALL)).eval()
    tokens = make_tokens(model)
    states = model(image_tokens=tokens, output_hidden_states=True).hidden_states

    assert len(states) == 3 and all(torch.equal(state, states[0]) for state in states)
    assert states[0].std() > 0.01


@pytest.mark.parametrize("tokenizer", [TOKENIZER, GROUPED], ids=["vector", "residual"])
def test_wrong_inputs_are_refused(tokenizer):
    """Each mistake gets its message."""
    model = make_model(tokenizer)
    tokens = make_tokens(model)
    groups = model.config.num_groups

    def refuses(message, **arguments):
        with pytest.raises(ValueError, match=message):
            model(**arguments)

    refuses("exactly one of `image_tokens` and `pixel_values`")
    refuses("exactly one", image_tokens=tokens, pixel_values=torch.zeros(2, 3, 16, 16))
    refuses("must be integers, got torch.float32", image_tokens=tokens.float())
    refuses(r"must have the shape \(batch, h, w", image_tokens=tokens.flatten(1))
    refuses("made for grids of 4 x 4 tokens, got 3 x 4", image_tokens=tokens[:, :3])
    refuses(
        f"it has {groups} x {16 // groups} codes, the ids are .* to 16",
        image_tokens=tokens.masked_fill(tokens == tokens.max(), 16),
    )
    refuses("the ids are -1 to", image_tokens=tokens - tokens.min() - 1)
    refuses(r"`mask` must be booleans of the tokens' shape \(2, 4, 4", image_tokens=tokens, mask=torch.ones(2, 4) > 0)
    refuses("got torch.int64", image_tokens=tokens, mask=torch.ones_like(tokens))
    refuses(r"must be in \[0, 3\).*got 0 to 3", image_tokens=tokens, class_labels=torch.tensor([0, 3]))
    refuses(r"integers of the shape \(2,\)", image_tokens=tokens, class_labels=torch.tensor([0]))
    refuses("integers of the shape", image_tokens=tokens, class_labels=torch.tensor([0.0, 1.0]))
    unconditional = make_model(tokenizer, num_classes=0)
    with pytest.raises(ValueError, match="no classes"):
        unconditional(image_tokens=tokens, class_labels=torch.tensor([0, 0]))


def test_ids_of_the_wrong_group_are_refused():
    """With separate codebooks the second group's ids start at 8."""
    model = make_model(GROUPED)

    with pytest.raises(ValueError, match="ids that this model's tokenizer does not have"):
        model(image_tokens=make_tokens(model).flip(-1))
