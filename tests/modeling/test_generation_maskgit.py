"""`MaskGitModel.generate`: both samplers against a model that knows the answer, and against what others get wrong."""

import pytest
import torch
from torch import nn

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, draw_mask
from hf_vq.modeling.masking_maskgit import masked_counts
from hf_vq.modeling.sampling_maskgit import halton_order

TOKENIZER = {
    "architecture": "sqvae",
    "image_size": 16,
    "base_channels": 8,
    "num_res_blocks": 1,
    "embed_dim": 4,
    "num_codes": 16,
}
GROUPED = TOKENIZER | {"quantizer_type": "residual", "num_groups": 2, "share_codebook": False}
BOTH = pytest.mark.parametrize("sampler", ["confidence", "halton"])


def make_model(tokenizer=TOKENIZER, **fields):
    """A small model whose answers depend on everything: classes, positions, other tokens."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = MaskGitConfig(vq_config=VQConfig(**tokenizer), **small | {"num_classes": 3} | fields)
    model = MaskGitModel(config)
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            if "modulation" in name or "embedding" in name:
                parameter.normal_(std=0.5)
        model.head.weight.normal_(std=0.5)
    return model.eval()


class Oracle(nn.Module):
    """Takes the place of a transformer: its states are the one-hot codes of a target for each class."""

    def __init__(self, model, targets):
        super().__init__()
        self.targets, self.masks, self.tokens = targets, [], []
        self.size = model.config.codebook_size
        model.transformer = self
        groups = targets.shape[-1]
        model.head = nn.Linear(groups * self.size, groups * self.size, bias=False)
        with torch.no_grad():
            model.head.weight.copy_(100 * torch.eye(groups * self.size))

    def forward(self, tokens, mask, class_labels):
        self.masks.append(mask.clone())
        self.tokens.append(tokens.clone())
        return nn.functional.one_hot(self.targets[class_labels], self.size).flatten(3).flatten(1, 2).float()


def seeded(*seeds):
    """A generator, or a list of them."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


@BOTH
@pytest.mark.parametrize("schedule", ["arccos", "cosine", "linear", "square"])
def test_a_model_that_knows_the_answer_gives_it(sampler, schedule):
    """Logits that are one-hot of a target for each class lead to it; known after each step is what the table says."""
    model = make_model()
    targets = torch.randint(0, 16, (4, 4, 4, 1), generator=seeded(0))
    oracle = Oracle(model, targets)
    out = model.generate(
        class_labels=[2, 0, 1], num_steps=4, schedule=schedule, sampler=sampler, return_intermediates=True
    )

    assert torch.equal(out.image_tokens, targets[[2, 0, 1], ..., 0])
    known = [16 - left for left in masked_counts(16, 4, schedule)]
    assert (out.intermediates >= 0).flatten(2).sum(2).tolist() == [[count] * 3 for count in known]
    assert [mask.flatten(1).sum(1).tolist() for mask in oracle.masks] == [[16 - n] * 3 for n in [0, *known[:-1]]]
    assert torch.equal(out.intermediates[-1], out.image_tokens)


@BOTH
def test_groups_are_filled(sampler):
    """With two groups of separate codebooks the tokens are the tokenizer's ids, and can be decoded."""
    model = make_model(GROUPED)
    targets = torch.randint(0, 8, (4, 4, 4, 2), generator=seeded(0))
    Oracle(model, targets)
    out = model.generate(class_labels=[2, 0], num_steps=5, sampler=sampler, output_type="pt")

    assert torch.equal(out.image_tokens, targets[[2, 0]] + torch.tensor([0, 8]))
    assert out.images.shape == (2, 3, 16, 16) and out.images.dtype == torch.uint8


def test_the_halton_sampler_follows_its_order():
    """After each step the known cells are the first of the Halton order; with groups, the first group's come first."""
    model = make_model(GROUPED)
    out = model.generate(num_steps=8, sampler="halton", return_intermediates=True)
    order = [cell * 2 + group for group in range(2) for cell in halton_order(4, 4)]

    for tokens, left in zip(out.intermediates[:, 0], masked_counts(32, 8), strict=True):
        known = (tokens.flatten() >= 0).nonzero().flatten().tolist()
        assert known == sorted(order[: 32 - left])


@BOTH
def test_known_tokens_stay_known(sampler):
    """No step hides or changes what an earlier one kept."""
    tokens = (
        make_model()
        .generate(num_images=4, num_steps=6, sampler=sampler, generator=seeded(0), return_intermediates=True)
        .intermediates
    )

    for before, after in zip(tokens, tokens[1:], strict=False):
        assert torch.equal(after[before >= 0], before[before >= 0])


def test_the_confidence_sampler_keeps_the_surest():
    """Without noise the first step keeps the guesses of the highest probability."""
    model = make_model()
    states = torch.zeros(1, 16, 32)
    strength = torch.tensor([3.0, 9, 1, 7, 2, 8, 4, 6, 5, 12, 10, 16, 11, 15, 13, 14])
    states[0, :, 5] = strength
    model.transformer = type("Fixed", (nn.Module,), {"forward": lambda self, *inputs: states})()
    model.head = nn.Linear(32, 16, bias=False)
    nn.init.eye_(model.head.weight)
    out = model.generate(num_steps=4, top_k=3, choice_temperature=0.0, return_intermediates=True, generator=seeded(0))
    first = (out.intermediates[0].flatten() >= 0).nonzero().flatten().tolist()

    assert first == [11, 13, 15]


def test_choice_temperature_randomizes_the_order():
    """Without noise two seeds that draw the same codes keep the same cells; with noise not."""
    model = make_model()
    options = {"num_steps": 4, "top_k": 1, "return_intermediates": True}

    def first_cells(temperature, seed):
        out = model.generate(choice_temperature=temperature, generator=seeded(seed), **options)
        return (out.intermediates[0] >= 0).flatten().tolist()

    assert first_cells(0.0, 1) == first_cells(0.0, 2)
    assert len({tuple(first_cells(100.0, seed)) for seed in range(4)}) > 1


@BOTH
@pytest.mark.parametrize("tokenizer", [TOKENIZER, GROUPED], ids=["vector", "residual"])
def test_kept_tokens_are_unchanged(sampler, tokenizer):
    """Inpainting with another mask for each image: what is kept is kept to the bit, the rest is filled."""
    model = make_model(tokenizer)
    given = model.generate(num_images=4, num_steps=4, generator=seeded(0)).image_tokens
    ratio = torch.tensor([0.1, 0.4, 0.8, 1.0])
    mask = draw_mask(tuple(given.shape), ratio, generator=seeded(1))
    original = given.clone()
    out = model.generate(
        class_labels=1,
        image_tokens=given.masked_fill(mask, -1),
        mask=mask,
        num_steps=4,
        sampler=sampler,
        generator=seeded(2),
        return_intermediates=True,
    )

    assert torch.equal(out.image_tokens[~mask], original[~mask])
    assert (out.image_tokens >= 0).all() and not torch.equal(out.image_tokens, original)
    for step in out.intermediates:
        assert torch.equal(step[~mask], original[~mask])
    counts = [[count - left for left in masked_counts(count, 4)] for count in mask.flatten(1).sum(1).tolist()]
    known = [(step >= 0).logical_and(mask).flatten(1).sum(1) for step in out.intermediates]
    assert torch.stack(known).T.tolist() == counts


@BOTH
def test_an_oracle_fills_the_hole(sampler):
    """Each image has a mask of its own, one of them a single token, one none."""
    model = make_model()
    targets = torch.randint(0, 16, (4, 4, 4, 1), generator=seeded(0))
    Oracle(model, targets)
    given = torch.randint(0, 16, (3, 4, 4), generator=seeded(1))
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[0, :, 2:] = True
    mask[1, 3, 3] = True
    out = model.generate(class_labels=[0, 1, 2], image_tokens=given, mask=mask, num_steps=3, sampler=sampler)

    assert torch.equal(out.image_tokens, torch.where(mask, targets[:3, ..., 0], given))


@BOTH
def test_outpainting_on_a_wider_grid(sampler):
    """With rotary positions the canvas may be larger than the tokenizer's images."""
    model = make_model(position_type="rotary")
    canvas = torch.zeros(1, 4, 8, dtype=torch.long)
    canvas[:, :, 2:6] = torch.randint(0, 16, (4, 4), generator=seeded(0))
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[:, 2:6] = False
    out = model.generate(image_tokens=canvas, mask=mask, num_steps=4, sampler=sampler, num_images=2)

    assert out.image_tokens.shape == (2, 4, 8) and out.images[0].size == (32, 16)
    assert torch.equal(out.image_tokens[:, :, 2:6], canvas[:, :, 2:6].expand(2, -1, -1))


def test_an_image_and_a_mask_of_pixels():
    """A cell is renewed if any of its pixels is; the rest are the image's tokens."""
    model = make_model()
    pixel_values = torch.rand(1, 3, 16, 16) * 2 - 1
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[7, 3:5] = True
    out = model.generate(
        pixel_values=pixel_values, mask=mask, num_steps=2, return_intermediates=True, generator=seeded(0)
    )
    tokens = model.tokenizer.encode(pixel_values).image_tokens

    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[0, 1, :2] = True
    assert torch.equal(out.intermediates[0] < 0, hidden & (out.intermediates[0] < 0))
    assert (out.intermediates[0] < 0).sum() == 1
    assert torch.equal(out.image_tokens[~hidden], tokens[~hidden])


@BOTH
def test_an_image_does_not_depend_on_its_batch(sampler):
    """With a generator each: other classes, guidance and masks in the batch, the same image as alone."""
    model = make_model()
    given = torch.randint(0, 16, (4, 4, 4), generator=seeded(9))
    mask = draw_mask((4, 4, 4), torch.tensor([0.3, 1.0, 0.5, 0.9]), generator=seeded(8))
    arguments = {"class_labels": torch.tensor([0, 2, -1, 1]), "guidance_scale": torch.tensor([1.0, 3.0, 2.0, 5.0])}
    arguments |= {"image_tokens": given, "mask": mask}
    options = {"num_steps": 5, "sampler": sampler, "top_p": 0.95, "guidance_schedule": "linear"}
    together = model.generate(**arguments, **options, generator=seeded(0, 1, 2, 3)).image_tokens
    alone = [
        model.generate(**{k: v[i : i + 1] for k, v in arguments.items()}, **options, generator=seeded(i)).image_tokens
        for i in range(4)
    ]

    assert torch.equal(together, torch.cat(alone))


@BOTH
def test_one_seed_one_result(sampler):
    """A generator decides everything; the global one is not touched."""
    model = make_model()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (
        model.generate(num_images=2, num_steps=4, sampler=sampler, generator=seeded(seed)).image_tokens
        for seed in (0, 0, 1)
    )

    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("scale", [2.5, 0.0, 1.0])
@pytest.mark.parametrize("tie", [True, False])
def test_guidance_is_u_plus_s_times_c_minus_u(scale, tie):
    """The likeliest codes of one step are those of the guided logits."""
    model = make_model(tie_word_embeddings=tie)
    model.head.bias.data.normal_()
    labels = torch.tensor([0, 2])
    canvas = torch.zeros(2, 4, 4, dtype=torch.long)
    everything = torch.ones_like(canvas, dtype=torch.bool)
    with torch.no_grad():
        conditional = model(image_tokens=canvas, class_labels=labels, mask=everything).logits
        unconditional = model(image_tokens=canvas, mask=everything).logits
    guided = unconditional + scale * (conditional - unconditional)
    out = model.generate(class_labels=labels, num_steps=1, guidance_scale=scale, top_k=1)

    assert torch.equal(out.image_tokens, guided.argmax(-1))
    assert (conditional.argmax(-1) != unconditional.argmax(-1)).any()


def test_both_branches_of_guidance_share_a_forward():
    """One call of the transformer a step, of twice the batch; none for the null class where the scale is 1."""
    model = make_model()
    sizes = []
    model.transformer.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    model.generate(class_labels=[0, 1, 2], num_steps=4, guidance_scale=3.0)
    model.generate(class_labels=[0, 1, 2], num_steps=4, guidance_scale=3.0, guidance_schedule="linear")
    model.generate(class_labels=[0, 1, 2], num_steps=4)

    assert sizes == [6] * 4 + [3, 6, 6, 6] + [3] * 4


def test_the_head_works_only_where_needed():
    """Cells that the head sees in each step: those still hidden, or in Halton order those whose turn it is."""
    model = make_model()
    cells = []
    model.head.register_forward_pre_hook(lambda module, args: cells.append(args[0].shape[1]))
    model.generate(class_labels=[0, 1], num_steps=4, guidance_scale=2.0)
    model.generate(num_images=2, num_steps=4, sampler="halton")

    assert cells == [16, 13, 10, 7] + [3, 3, 3, 7]


def test_temperature_and_its_annealing():
    """A low temperature gives the likeliest codes; a pair goes from the first value to the second."""
    model = make_model()
    likeliest = model.generate(num_steps=1, top_k=1).image_tokens
    cold = model.generate(num_steps=1, temperature=1e-4).image_tokens
    hot = [model.generate(num_steps=1, temperature=50.0, generator=seeded(seed)).image_tokens for seed in (0, 1)]
    annealed = model.generate(num_steps=2, temperature=(50.0, 1e-4), sampler="halton", generator=seeded(0))
    constant = model.generate(num_steps=2, temperature=50.0, sampler="halton", generator=seeded(0))

    assert torch.equal(likeliest, cold) and not torch.equal(*hot)
    assert not torch.equal(annealed.image_tokens, constant.image_tokens)


def test_more_steps_than_hidden_tokens():
    """A small hole is filled early, one token a step, whatever the other images do."""
    model = make_model()
    given = torch.zeros(2, 4, 4, dtype=torch.long)
    mask = torch.zeros_like(given, dtype=torch.bool)
    mask[0, 0, :2] = True
    mask[1] = True
    out = model.generate(image_tokens=given, mask=mask, num_steps=8, return_intermediates=True)

    known = (out.intermediates[:, 0] >= 0).flatten(1).sum(1).tolist()
    assert known == [15, 16, 16, 16, 16, 16, 16, 16]
    alone = model.generate(image_tokens=given[:1], mask=mask[:1], num_steps=8, return_intermediates=True)
    assert alone.intermediates.shape == (8, 1, 4, 4) and (alone.intermediates[1:] >= 0).all()


def test_images():
    """PIL or 8-bit tensors of the decoded tokens; gray tokenizers give gray images."""
    model = make_model()
    out = model.generate(num_images=2, num_steps=2, generator=seeded(0))
    tensor = model.generate(num_images=2, num_steps=2, generator=seeded(0), output_type="pt").images
    decoded = model.tokenizer.decode(out.image_tokens).decoded_pixel_values

    assert [image.size for image in out.images] == [(16, 16)] * 2 and out.images[0].mode == "RGB"
    assert torch.equal(tensor, ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    assert make_model(TOKENIZER | {"num_channels": 1}).generate(num_steps=1).images[0].mode == "L"


def test_generate_leaves_the_mode_as_it_was():
    """In training mode it samples without dropout, and returns to training."""
    model = make_model(dropout=0.5)
    expected = model.generate(num_steps=2, generator=seeded(0)).image_tokens
    model.train()

    assert torch.equal(model.generate(num_steps=2, generator=seeded(0)).image_tokens, expected)
    assert model.training and model.transformer.layers[0].training and not model.tokenizer.training


@pytest.mark.compiles
def test_the_transformer_compiles_to_one_graph():
    """The same shapes in every step: traced once, without a break, for all steps."""
    model = make_model()
    expected = model.generate(class_labels=[0, 1], num_steps=4, guidance_scale=2.0, generator=seeded(0)).image_tokens
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.transformer.compile(backend=backend, fullgraph=True, dynamic=False)
    out = model.generate(class_labels=[0, 1], num_steps=4, guidance_scale=2.0, generator=seeded(0)).image_tokens

    assert torch.equal(out, expected) and len(graphs) == 1


def test_a_tiny_model_learns_64_grids():
    """Trained on 64 random grids, each a class of its own, it knows them and both samplers write them down."""
    torch.manual_seed(0)
    fields = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = MaskGitConfig(vq_config=VQConfig(**TOKENIZER), num_classes=64, dropout=0.0, label_smoothing=0.0, **fields)
    model = MaskGitModel(config)
    generator = seeded(1)
    grids, labels = torch.randint(0, 16, (64, 4, 4), generator=generator), torch.arange(64)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=3e-3, betas=(0.9, 0.96), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 200)
    for _ in range(200):
        model(image_tokens=grids, class_labels=labels, generator=generator).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()

    assert model(image_tokens=grids, class_labels=labels, generator=generator).loss < 0.1
    for sampler in ("confidence", "halton"):
        out = model.generate(
            class_labels=labels, num_steps=8, guidance_scale=2.0, sampler=sampler, generator=generator
        )
        assert (out.image_tokens == grids).flatten(1).all(1).sum() >= 62
