"""Training of generators: what is learned, measured, resumed, refused and published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from huggingface_hub import ModelCard
from PIL import Image
from torch.utils.data import IterableDataset
from transformers import AutoImageProcessor, AutoModel

import hf_vq
from hf_vq import GeneratorTrainer, GeneratorTrainingArguments, MaskGitConfig, MaskGitModel, VQModel
from hf_vq.training.checkpoints import STATE_FILE, CheckpointError
from hf_vq.training.generator import lookup_tables
from hf_vq.training.generator_data import FixedMasks, check_tokens
from hf_vq.utils.hashes import weights_sha256

if TYPE_CHECKING:
    from ...hub_server import HubServer

MakeTrainer = Callable[..., Any]
CLASSES = 3
CODES_OF_A_CLASS = 5


def token_set(length: int = 24, classes: int = CLASSES, **columns: Any) -> datasets.Dataset:
    """Grids of 4 x 4 tokens; those of class c are codes 5 c to 5 c + 4."""
    generator = np.random.default_rng(length)
    labels = np.arange(length) % classes
    tokens = labels[:, None, None] * CODES_OF_A_CLASS + generator.integers(0, CODES_OF_A_CLASS, (length, 4, 4))
    values = {"image_tokens": tokens.tolist(), "label": labels.tolist(), **columns}
    present = {name: value for name, value in values.items() if value is not None}
    return datasets.Dataset.from_dict(present).with_format("torch")


@pytest.fixture
def make_generator(make_model: Callable[..., VQModel]) -> Callable[..., MaskGitModel]:
    """Makes tiny generators, equal ones for equal settings, of 16 codes."""

    def make(tokenizer: dict[str, Any] | None = None, **fields: Any) -> MaskGitModel:
        vq_model = make_model(**(tokenizer or {}))
        set_seed(0)
        settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_classes": CLASSES}
        config = MaskGitConfig(vq_config=vq_model.config, **{**settings, **fields})
        return MaskGitModel(config, tokenizer=vq_model)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path, make_generator: Callable[..., MaskGitModel]) -> MakeTrainer:
    """Makes trainers of tiny generators in `tmp_path / output_dir`; `model` holds the model's fields."""

    def make(
        output_dir: str = "out",
        model: dict[str, Any] | None = None,
        train: Any = None,
        held_out: Any = None,
        tokenizer: dict[str, Any] | None = None,
        **fields: Any,
    ) -> GeneratorTrainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / output_dir),
            "max_steps": 6,
            "train_batch_size": 4,
            "eval_batch_size": 3,
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "eval_steps": 3,
            "save_steps": 2,
            "num_sample_images": 4,
            "sample_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
        return GeneratorTrainer(
            make_generator(tokenizer, **(model or {})),
            GeneratorTrainingArguments(**settings),
            token_set() if train is None else train,
            token_set(7) if held_out is None else held_out,
        )

    return make


def batch_of(trainer: Any, start: int = 0, size: int = 4) -> dict[str, torch.Tensor]:
    """Some training rows as a batch."""
    return trainer.train_dataset[start : start + size]


# ---- learning


def test_samples_have_their_class_tokens(make_trainer: MakeTrainer) -> None:
    """After seconds of training most tokens of a class's samples are that class's, and held-out guesses are better."""
    trainer = make_trainer(max_steps=120, train_batch_size=16, use_ema=True, ema_decay=0.9, eval_steps=0, save_steps=0)
    before = trainer.evaluate()
    after = trainer.train()

    labels = torch.arange(CLASSES).repeat_interleave(8)
    output = trainer.published_model().generate(
        class_labels=labels, num_steps=4, guidance_scale=2.0, generator=torch.Generator().manual_seed(1)
    )
    hits = (output.image_tokens // CODES_OF_A_CLASS == labels[:, None, None]).float().mean((1, 2))
    assert (hits > 0.5).all(), hits
    assert after["masked_cross_entropy"] < 0.8 * before["masked_cross_entropy"]
    assert after["masked_accuracy"] > 1.5 / 16  # chance, where classes are not told apart, is 1 / 15


def test_the_tokenizer_stays_as_it_is_and_the_average_is_published(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Not a bit of the tokenizer changes; the final transformer is the average, not the last weights."""
    trainer = make_trainer(use_ema=True)
    before = weights_sha256(trainer.model.tokenizer)
    last = trainer.model.head.bias
    start = last.detach().clone()
    trainer.train()

    final = MaskGitModel.from_pretrained(tmp_path / "out" / "final")
    assert weights_sha256(final.tokenizer) == weights_sha256(trainer.model.tokenizer) == before
    assert torch.equal(final.head.bias, trainer.ema.module.head.bias)
    assert not torch.equal(final.head.bias, last)
    assert 0 < (final.head.bias - start).norm() < (last - start).norm()


def test_decay_is_for_matrices_alone(make_trainer: MakeTrainer) -> None:
    """Vectors and tables of embeddings do not decay, nothing of the tokenizer is trained, and nothing is left out."""
    trainer = make_trainer(weight_decay=0.1)
    decayed, others = trainer.networks.optimizers["model"].param_groups
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}

    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert {names[id(weight)].rpartition(".")[0].rpartition(".")[2] for weight in decayed["params"]} == {
        "embed_tokens", "qkv", "proj", "gate_up", "down", "modulation",
    }  # fmt: skip
    grouped = [id(weight) for group in (decayed, others) for weight in group["params"]]
    trained = [id(weight) for name, weight in trainer.model.named_parameters() if not name.startswith("tokenizer.")]
    assert sorted(grouped) == sorted(trained)


def test_an_untied_table_of_tokens_does_not_decay(make_generator: Callable[..., MaskGitModel]) -> None:
    """Only a table that is the head, too, is a matrix of a product."""
    tied, untied = make_generator(), make_generator(tie_word_embeddings=False)

    assert not any(table is tied.transformer.embed_tokens.weight for table in lookup_tables(tied))
    assert any(table is untied.transformer.embed_tokens.weight for table in lookup_tables(untied))


def test_accumulated_micro_batches_make_the_step_of_one_batch(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything hidden and nothing random, two micro batches of 4 give the gradient of one batch of 8."""
    monkeypatch.setattr(
        "hf_vq.modeling.modeling_maskgit.draw_mask", lambda shape, *_: torch.ones(shape, dtype=torch.bool)
    )
    model = {"dropout": 0.0, "class_dropout": 0.0}
    norms = []
    for batches in ([(0, 4), (4, 4)], [(0, 8)]):
        trainer = make_trainer(model=model)
        values = trainer.train_step([batch_of(trainer, *place) for place in batches])
        norms.append((values["grad_norm"], values["loss"]))

    torch.testing.assert_close(norms[0], norms[1])


@pytest.mark.parametrize("fields", [{"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("model", [{"num_classes": 0, "position_type": "rotary"}, {"class_conditioning": "prefix"}])
def test_other_settings_train_save_float32_and_sample(
    make_trainer: MakeTrainer, tmp_path: Path, fields: dict[str, Any], model: dict[str, Any]
) -> None:
    """bfloat16 autocast, accumulation, models without classes or with a class token come to a float32 model."""
    train = token_set(label=None) if model.get("num_classes") == 0 else None
    held_out = token_set(7, label=None) if model.get("num_classes") == 0 else None
    make_trainer(model=model, train=train, held_out=held_out, max_steps=2, **fields).train()

    final = AutoModel.from_pretrained(tmp_path / "out" / "final")
    assert {weight.dtype for weight in final.parameters()} == {torch.float32}
    assert Image.open(tmp_path / "out" / "eval" / "step-0000002-samples.png").width > 500


def test_grouped_tokens_of_separate_codebooks_train(make_trainer: MakeTrainer) -> None:
    """Ids of the second group follow those of the first; a model that knows them by heart guesses them right."""
    tokens = torch.stack([torch.full((4, 4), 3), torch.full((4, 4), 12)], -1)
    rows = {"image_tokens": [tokens.tolist()] * 8, "label": [0] * 8}
    train = datasets.Dataset.from_dict(rows).with_format("torch")
    tokenizer = {"quantizer_type": "group", "num_groups": 2, "share_codebook": False}
    trainer = make_trainer(tokenizer=tokenizer, train=train, held_out=train, max_steps=40, eval_steps=0, save_steps=0)

    assert trainer.train()["masked_accuracy"] == 1


# ---- measuring


def test_measures_are_those_of_the_fixed_masks(make_trainer: MakeTrainer) -> None:
    """Cross entropy and accuracy over hidden tokens, computed here one image at a time, in eval mode."""
    trainer = make_trainer(max_steps=2, use_ema=True)
    measured = trainer.train()
    model = trainer.published_model()
    losses, hits = [], []
    rows = FixedMasks(trainer.eval_dataset, model.config, seed=0)
    for row in (rows[index] for index in range(7)):
        mask, tokens = row["mask"], row["image_tokens"]
        with torch.no_grad():
            logits = model(image_tokens=tokens[None], class_labels=row["label"][None], mask=mask[None]).logits[0]
        losses += [-logits[place].log_softmax(-1)[tokens[place]] for place in map(tuple, mask.nonzero().tolist())]
        hits += (logits.argmax(-1) == tokens)[mask].tolist()

    assert measured["num_images"] == 7
    assert measured["masked_cross_entropy"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert measured["masked_accuracy"] == pytest.approx(np.mean(hits))


def test_measures_do_not_depend_on_batches_or_chance(make_trainer: MakeTrainer) -> None:
    """Other batch sizes, workers and random states give the same numbers; another seed gives others."""
    fields = {"num_distance_images": 5}
    first = make_trainer("a", eval_batch_size=3, **fields).evaluate()
    torch.manual_seed(1234)
    second = make_trainer("b", eval_batch_size=7, dataloader_num_workers=1, **fields).evaluate()
    other = make_trainer("c", seed=1).evaluate()

    assert second == pytest.approx(first, rel=1e-6)
    assert first["num_distance_images"] == 5 and first["frechet_8x8_pixels"] > 0
    assert "frechet_8x8_pixels" not in other
    assert other["masked_cross_entropy"] != pytest.approx(first["masked_cross_entropy"], rel=1e-6)


def test_fixed_masks_follow_the_schedule(make_generator: Callable[..., MaskGitModel]) -> None:
    """Over many images their shares are spread as training's are: arccos hides 2 / pi of the tokens."""
    rows = token_set(400)
    for schedule, mean in (("arccos", 2 / np.pi), ("linear", 0.5), ("square", 2 / 3)):
        config = make_generator(mask_schedule=schedule).config
        masked = FixedMasks(rows, config, seed=0)
        masks = torch.stack([masked[index]["mask"] for index in range(400)]).float()
        assert masks.mean() == pytest.approx(mean, abs=0.04)
        assert masks.mean((1, 2)).std() > 0.2


def test_evaluation_changes_nothing(make_trainer: MakeTrainer) -> None:
    """Weights, random numbers and the mode of the model are the same after an evaluation with samples."""
    trainer = make_trainer(num_distance_images=4)
    trainer.train_step([batch_of(trainer)])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random = torch.get_rng_state()

    trainer.evaluate()

    assert trainer.model.training and not trainer.model.tokenizer.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_samples_are_of_the_same_seeds_each_time(make_trainer: MakeTrainer) -> None:
    """The sheet of an unchanged model is the same, whatever was drawn before and however it is cut in batches."""
    first = make_trainer("a", num_sample_images=10).samples()
    torch.manual_seed(99)
    second = make_trainer("b", num_sample_images=10, eval_batch_size=64).samples()

    assert np.array_equal(np.asarray(first), np.asarray(second))


# ---- resuming


class Stopped(Exception):
    """What a test stops a run with."""


def stop_after(trainer: Any, step: int) -> None:
    """Lets a trainer run until a step is done, without saving there, as a kill would."""
    train_step = trainer.train_step

    def stopping(batches: Any) -> Any:
        if trainer.step == step:
            raise Stopped
        return train_step(batches)

    trainer.train_step = stopping
    with pytest.raises(Stopped):
        trainer.train()


def test_a_resumed_run_equals_the_uninterrupted_one(make_trainer: MakeTrainer, tmp_path: Path, runs: Any) -> None:
    """Weights, averages, optimizer, random masks and metrics are bit-equal after two interruptions."""
    settings = {
        "use_ema": True, "gradient_accumulation_steps": 2, "max_steps": 7, "num_distance_images": 4,
        "model": {"mask_count": "bernoulli", "unmasked_loss_weight": 0.1},
    }  # fmt: skip
    make_trainer("straight", **settings).train()

    stop_after(make_trainer("resumed", **settings), step=3)
    stop_after(make_trainer("resumed", **settings, resume_from_checkpoint="latest"), step=5)
    make_trainer("resumed", **settings, resume_from_checkpoint="latest").train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_tokens_of_another_tokenizer_do_not_continue_a_run(make_trainer: MakeTrainer) -> None:
    """The same configuration with other weights of the tokenizer is another run."""
    make_trainer().train()
    other = make_trainer(resume_from_checkpoint="latest", max_steps=6)
    with torch.no_grad():
        other.model.tokenizer.quantize.codebook.weight.add_(1)
    other.tokenizer_sha256 = weights_sha256(other.model.tokenizer)

    with pytest.raises(CheckpointError, match="tokens of another tokenizer"):
        other.train()


def test_a_run_older_than_the_range_of_pixels_goes_on(make_trainer: MakeTrainer, tmp_path: Path, runs: Any) -> None:
    """Its checkpoint does not say that the frozen tokenizer's pixels are in [0, 1], which changes no token."""
    settings: dict[str, Any] = {"tokenizer": {"pixel_range": [0.0, 1.0]}}
    make_trainer("straight", **settings).train()
    stop_after(make_trainer("resumed", **settings), step=3)
    file = tmp_path / "resumed" / "checkpoint-2" / STATE_FILE
    state = json.loads(file.read_text())
    del state["model"]["vq_config"]["pixel_range"], state["model"]["norm_eps"], state["files"], state["sha256"]
    file.write_text(json.dumps(state))

    with pytest.raises(CheckpointError, match="model.norm_eps: 1e-06 in the checkpoint, 0.001 now"):
        make_trainer("resumed", {"norm_eps": 1e-3}, **settings, resume_from_checkpoint="latest").train()
    make_trainer("resumed", **settings, resume_from_checkpoint="latest").train()
    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_a_checkpoint_loads_with_automodel(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Weights of any checkpoint, tied ones too, can be looked at without a trainer."""
    trainer = make_trainer()
    trainer.train()
    model = AutoModel.from_pretrained(tmp_path / "out" / "checkpoint-4")
    last = AutoModel.from_pretrained(tmp_path / "out" / "checkpoint-6")

    assert model.head.weight is model.transformer.embed_tokens.weight
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(last.state_dict()[name], weight), name
    assert not torch.equal(model.head.weight, last.head.weight)


# ---- bad input


class Stream(IterableDataset[dict[str, Any]]):
    """Tokens that can only be read in order."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(token_set())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda: token_set(classes=4), "training set holds tokens from 0 to 19, the tokenizer has the ids 0 to 15"),
        (lambda: token_set(label=None), "num_classes=3, but the training set has no labels"),
        (lambda: token_set(label=[3] * 24), "labels from 3 to 3, but the model has num_classes=3.*--num_classes 4"),
        (lambda: token_set(label=[-2] * 24), "labels from -2 to -2"),
        (lambda: token_set(label=[-1] * 24), "no image of the training set has a label"),
        (lambda: token_set(image_tokens=[[[0] * 5] * 5] * 24), r"shape \(5, 5\), the model is made for \(4, 4\)"),
        (lambda: token_set().remove_columns("image_tokens"), r"no 'image_tokens', only \['label'\]"),
        (lambda: token_set().select([]), "training set is empty"),
        (Stream, "must be map-style"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    make_trainer: MakeTrainer, tmp_path: Path, train: Callable[[], Any], message: str
) -> None:
    """Before the first step, with what is wrong and what to do; nothing is written."""
    with pytest.raises(ValueError, match=message):
        make_trainer(train=train())
    assert not (tmp_path / "out").exists()


def test_held_out_data_are_checked_as_well(make_trainer: MakeTrainer) -> None:
    """A held-out set without labels is named as such."""
    with pytest.raises(ValueError, match="held-out set has no labels"):
        make_trainer(held_out=token_set(7, label=None))


def test_ids_of_separate_codebooks_are_checked_group_by_group(make_generator: Callable[..., MaskGitModel]) -> None:
    """An id that is fine in one group is out of range in the other."""
    config = make_generator({"quantizer_type": "group", "num_groups": 2, "share_codebook": False}).config
    for second, fits in ((8, True), (7, False)):
        tokens = torch.stack([torch.full((4, 4), 7), torch.full((4, 4), second)], -1)
        rows = datasets.Dataset.from_dict({"image_tokens": [tokens.tolist()], "label": [0]}).with_format("torch")
        if fits:
            check_tokens(rows, config, "training")
        else:
            with pytest.raises(ValueError, match="0 to 7, 8 to 15 .one range a group."):
                check_tokens(rows, config, "training")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_steps": 17}, "`sample_steps` must be from 1 to 16, the tokens of an image, got 17"),
        ({"num_distance_images": 1}, "num_distance_images must be 0, or at least 2"),
        ({"sample_steps": 0}, "`sample_steps` must be a whole number from 1"),
        ({"sample_guidance_scale": float("nan")}, "`sample_guidance_scale` must be finite"),
        ({"sample_sampler": "nucleus"}, '`sample_sampler` must be "confidence" or "halton", got .nucleus'),
        ({"sample_temperature": 0.0}, "`sample_temperature` must be above 0.*`sample_top_k=1` takes"),
        ({"sample_choice_temperature": -1.0}, "`sample_choice_temperature` must be at least 0"),
        (
            {"sample_choice_temperature": 1.0, "sample_sampler": "halton"},
            '`sample_choice_temperature` has no effect with `sample_sampler="halton"`',
        ),
    ],
)
def test_impossible_settings_are_refused(make_trainer: MakeTrainer, fields: dict[str, Any], message: str) -> None:
    """What could only fail in the first evaluation fails at once."""
    with pytest.raises(ValueError, match=message):
        make_trainer(**fields)


# ---- publishing


def test_samples_are_drawn_as_asked_and_the_card_says_how(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Temperatures change the picture and stand in the code of the card."""
    plain = make_trainer(max_steps=1, eval_steps=0, save_steps=0)
    sharp = make_trainer("sharp", max_steps=1, sample_temperature=0.01, sample_choice_temperature=0.0)
    assert plain.samples().tobytes() != sharp.samples().tobytes()

    sharp.train()
    card = (tmp_path / "sharp" / "final" / "README.md").read_text()
    assert "num_steps=2, guidance_scale=3.0, temperature=0.01, choice_temperature=0.0" in card


def test_the_final_folder_is_a_whole_hub_repository(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """It loads with AutoModel and AutoImageProcessor and makes the trainer's images; the card has the numbers."""
    trainer = make_trainer(num_distance_images=4)
    measured = trainer.train()
    final = tmp_path / "out" / "final"
    model = AutoModel.from_pretrained(final)

    assert isinstance(model, MaskGitModel) and not model.training
    tokens: list[Any] = [
        each.generate(class_labels=[0, 2], num_steps=2, generator=torch.Generator().manual_seed(0)).image_tokens
        for each in (model, trainer.model)
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert AutoImageProcessor.from_pretrained(final).crop_size.height == 16
    card = ModelCard.load(final / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    for name in ("masked_cross_entropy", "masked_accuracy", "frechet_8x8_pixels"):
        assert results[name].metric_value == pytest.approx(measured[name], rel=1e-5)
    assert results["masked_accuracy"].dataset_args == {"num_images": 7, "num_distance_images": 4}
    for part in ("](samples.png)", "model.generate(class_labels=[0, 1, 2], num_steps=2, guidance_scale=3.0", "no FID"):
        assert part in card.text
    assert Image.open(final / "samples.png").width > 500


def test_a_run_without_held_out_data_still_shows_samples(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Nothing is measured, and the card says so."""
    trainer = make_trainer(max_steps=2)
    trainer.eval_dataset = None
    trainer.train()

    assert (tmp_path / "out" / "final" / "samples.png").exists()
    assert "Not measured." in (tmp_path / "out" / "final" / "README.md").read_text()


def test_the_final_model_is_published_in_one_commit(hub: HubServer, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """What the run pushes is the final folder, and `from_hub` loads it."""
    make_trainer(push_to_hub=True, hub_model_id="tiny-maskgit", max_steps=2).train()

    history = hub.store.repositories["models", "alice/tiny-maskgit"].history()
    assert [commit.title for commit in history] == ["Upload model of step 2", "initial commit"]
    for path in (tmp_path / "out" / "final").iterdir():
        assert hub.store.read("alice/tiny-maskgit", path.name) == path.read_bytes(), path.name
    model, processor = hf_vq.from_hub("alice/tiny-maskgit")
    assert isinstance(model, MaskGitModel) and processor.crop_size["height"] == 16
