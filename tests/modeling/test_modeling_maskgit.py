"""MaskGitModel: its loss, its frozen tokenizer, saving and loading, precision, and what it refuses."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, VQImageProcessor, VQModel
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
]


def make_model(tokenizer=TOKENIZER, **fields):
    """Makes a small model with the same weights every time, and opens its gates, so that layers have an effect."""
    torch.manual_seed(0)
    fields = {"num_classes": 3, "dropout": 0.0} | SMALL | fields
    model = MaskGitModel(MaskGitConfig(vq_config=VQConfig(**tokenizer), **fields))
    with torch.no_grad():
        for layer in model.transformer.layers:
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


@pytest.mark.parametrize("tokenizer", [TOKENIZER, GROUPED], ids=["vector", "residual"])
def test_a_saved_model_comes_back(tmp_path, tokenizer):
    """AutoModel finds the class, all weights and answers are the same, and the head stays tied."""
    model = make_model(tokenizer)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    tokens = make_tokens(model)
    mask = torch.ones_like(tokens, dtype=torch.bool)

    assert type(loaded) is MaskGitModel and not loaded.training
    assert loaded.head.weight is loaded.transformer.embed_tokens.weight
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(image_tokens=tokens, mask=mask).logits, loaded(image_tokens=tokens, mask=mask).logits)


def test_names_of_weights():
    """Weights keep their names, because checkpoints depend on them."""
    names = {name for name in make_model(num_hidden_layers=1).state_dict() if not name.startswith("tokenizer.")}

    assert names == {
        "head.weight",
        "head.bias",
        "transformer.embed_tokens.weight",
        "transformer.mask_embedding",
        "transformer.class_embedding.weight",
        "transformer.register",
        "transformer.position_embedding",
        "transformer.norm.weight",
        "transformer.layers.0.attn.qkv.weight",
        "transformer.layers.0.attn.q_norm.weight",
        "transformer.layers.0.attn.k_norm.weight",
        "transformer.layers.0.attn.proj.weight",
        "transformer.layers.0.mlp.gate_up.weight",
        "transformer.layers.0.mlp.down.weight",
        "transformer.layers.0.modulation.weight",
        "transformer.layers.0.modulation.bias",
    }


def test_initial_layers_are_the_identity():
    """With adaLN-zero the gates are shut before training, so depth changes nothing."""
    torch.manual_seed(0)
    model = MaskGitModel(MaskGitConfig(vq_config=VQConfig(**TOKENIZER), **SMALL)).eval()
    tokens = make_tokens(model)
    states = model(image_tokens=tokens, output_hidden_states=True).hidden_states

    assert len(states) == 3 and all(torch.equal(state, states[0]) for state in states)
    assert states[0].std() > 0.01


def test_half_precision(tmp_path):
    """The transformer is in bfloat16 but the codebook is not. The loss is close, and images come out."""
    model = make_model()
    model.save_pretrained(tmp_path)
    half = MaskGitModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tokens = make_tokens(model)
    mask = torch.ones_like(tokens, dtype=torch.bool)

    assert half.transformer.embed_tokens.weight.dtype == half.dtype == torch.bfloat16
    assert half.tokenizer.quantize.get_codebook().dtype == torch.float32
    assert half(image_tokens=tokens, mask=mask).loss.item() == pytest.approx(
        model(image_tokens=tokens, mask=mask).loss.item(), rel=0.05
    )
    assert half.generate(class_labels=[0, 1], guidance_scale=2.0, num_steps=2).images[0].size == (16, 16)


def test_autocast_trains():
    """Forward and backward run under autocast, with the loss in float32."""
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(image_tokens=make_tokens(model)).loss
    loss.backward()

    assert loss.dtype == torch.float32 and model.head.weight.grad.isfinite().all()


def test_gradient_checkpointing_changes_nothing():
    """Recomputed layers give the same gradients, also with rotary positions."""
    gradients = []
    for checkpointing in (False, True):
        model = make_model(position_type="rotary", class_dropout=0.0).train()
        if checkpointing:
            # The older name is deprecated. Not every version that we support has the newer one.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model(image_tokens=make_tokens(model), generator=torch.Generator().manual_seed(0)).loss.backward()
        gradients.append(model.transformer.layers[0].attn.qkv.weight.grad)

    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().max() > 0


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


REMOTE = """
import json, sys

sys.modules["hf_vq"] = None  # importing it now raises
import torch
from PIL import Image
from transformers import AutoModel, pipeline

folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
options = {"num_steps": 4, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(0)}
tokens = model.generate(class_labels=[0, 1], **options).image_tokens
pipe = pipeline("image-generation", model=folder, trust_remote_code=True)
options["generator"] = torch.Generator().manual_seed(0)
outputs = pipe([0, 1], **options)
photo = Image.new("RGB", (40, 40), (10, 200, 90))
mask = Image.new("L", (40, 40))
mask.paste(255, (20, 0, 40, 40))
inpainted = pipe("LABEL_1", image=photo, mask=mask, keep_pixels=True, seed=3, num_steps=2, output_format="json")
model.save_pretrained(folder + "-again")
print(json.dumps({
    "module": type(model).__module__,
    "tokens": tokens.tolist(),
    "pipe": [output["image_tokens"].tolist() for output in outputs],
    "inpainted": inpainted,
    "frozen": not any(parameter.requires_grad for parameter in model.tokenizer.parameters()),
}))
"""


@pytest.mark.local_code
def test_a_saved_model_runs_without_the_package(tmp_path):
    """Where hf_vq cannot be imported, the code in the folder makes the same images, alone and in the pipeline."""
    model = make_model()
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    options = {"num_steps": 4, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(0)}
    tokens = model.generate(class_labels=[0, 1], **options).image_tokens.tolist()
    script = tmp_path / "load.py"
    script.write_text(REMOTE)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-I", script, folder], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])

    assert answer["module"].startswith("transformers_modules.")
    assert answer["tokens"] == answer["pipe"] == tokens
    inpainted = VQImageProcessor().fetch_images(answer["inpainted"]["image"])
    left = inpainted.crop((0, 0, inpainted.width // 2, inpainted.height))
    assert left.getcolors() == [(left.width * left.height, (10, 200, 90))] and len(inpainted.getcolors()) > 1
    assert answer["frozen"]
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("checkpoint", "checkpoint-again")]
    assert files[0] - {"__pycache__"} == files[1] - {"__pycache__"}
