"""Training of generators: what is learned, measured and published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import hf_vq
from hf_vq import MaskGitModel
from hf_vq.training.generator import lookup_tables
from hf_vq.training.generator_data import FixedMasks
from hf_vq.utils.hashes import weights_sha256

if TYPE_CHECKING:
    from ...hub_server import HubServer

from .generator_runs import CLASSES, CODES_OF_A_CLASS, MakeTrainer, batch_of, token_set

# ---- learning


def test_samples_have_their_class_tokens(make_generator_trainer: MakeTrainer) -> None:
    """After seconds of training most tokens of a class's samples are that class's, and held-out guesses are better."""
    trainer = make_generator_trainer(
        max_steps=120, train_batch_size=16, use_ema=True, ema_decay=0.9, eval_steps=0, save_steps=0
    )
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


def test_the_tokenizer_stays_as_it_is_and_the_average_is_published(
    make_generator_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Not a bit of the tokenizer changes; the final transformer is the average, not the last weights."""
    trainer = make_generator_trainer(use_ema=True)
    before = weights_sha256(trainer.model.tokenizer)
    last = trainer.model.head.bias
    start = last.detach().clone()
    trainer.train()

    final = MaskGitModel.from_pretrained(tmp_path / "out" / "final")
    assert weights_sha256(final.tokenizer) == weights_sha256(trainer.model.tokenizer) == before
    assert torch.equal(final.head.bias, trainer.ema.module.head.bias)
    assert not torch.equal(final.head.bias, last)
    assert 0 < (final.head.bias - start).norm() < (last - start).norm()


def test_decay_is_for_matrices_alone(make_generator_trainer: MakeTrainer) -> None:
    """Vectors and tables of embeddings do not decay, nothing of the tokenizer is trained, and nothing is left out."""
    trainer = make_generator_trainer(weight_decay=0.1)
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
    make_generator_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything hidden and nothing random, two micro batches of 4 give the gradient of one batch of 8."""
    monkeypatch.setattr(
        "hf_vq.modeling.modeling_maskgit.draw_mask", lambda shape, *_: torch.ones(shape, dtype=torch.bool)
    )
    model = {"dropout": 0.0, "class_dropout": 0.0}
    norms = []
    for batches in ([(0, 4), (4, 4)], [(0, 8)]):
        trainer = make_generator_trainer(model=model)
        values = trainer.train_step([batch_of(trainer, *place) for place in batches])
        norms.append((values["grad_norm"], values["loss"]))

    torch.testing.assert_close(norms[0], norms[1])


@pytest.mark.parametrize("fields", [{"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("model", [{"num_classes": 0, "position_type": "rotary"}, {"class_conditioning": "prefix"}])
def test_other_settings_train_save_float32_and_sample(
    make_generator_trainer: MakeTrainer, tmp_path: Path, fields: dict[str, Any], model: dict[str, Any]
) -> None:
    """bfloat16 autocast, accumulation, models without classes or with a class token come to a float32 model."""
    train = token_set(label=None) if model.get("num_classes") == 0 else None
    held_out = token_set(7, label=None) if model.get("num_classes") == 0 else None
    make_generator_trainer(model=model, train=train, held_out=held_out, max_steps=2, **fields).train()

    final = AutoModel.from_pretrained(tmp_path / "out" / "final")
    assert {weight.dtype for weight in final.parameters()} == {torch.float32}
    assert Image.open(tmp_path / "out" / "eval" / "step-0000002-samples.png").width > 500


def test_grouped_tokens_of_separate_codebooks_train(make_generator_trainer: MakeTrainer) -> None:
    """Ids of the second group follow those of the first; a model that knows them by heart guesses them right."""
    tokens = torch.stack([torch.full((4, 4), 3), torch.full((4, 4), 12)], -1)
    rows = {"image_tokens": [tokens.tolist()] * 8, "label": [0] * 8}
    train = datasets.Dataset.from_dict(rows).with_format("torch")
    tokenizer = {"quantizer_type": "group", "num_groups": 2, "share_codebook": False}
    trainer = make_generator_trainer(
        tokenizer=tokenizer, train=train, held_out=train, max_steps=40, eval_steps=0, save_steps=0
    )

    assert trainer.train()["masked_accuracy"] == 1


# ---- measuring


def test_measures_are_those_of_the_fixed_masks(make_generator_trainer: MakeTrainer) -> None:
    """Cross entropy and accuracy over hidden tokens, computed here one image at a time, in eval mode."""
    trainer = make_generator_trainer(max_steps=2, use_ema=True)
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


def test_measures_do_not_depend_on_batches_or_chance(make_generator_trainer: MakeTrainer) -> None:
    """Other batch sizes, workers and random states give the same numbers; another seed gives others."""
    fields = {"num_distance_images": 5}
    first = make_generator_trainer("a", eval_batch_size=3, **fields).evaluate()
    torch.manual_seed(1234)
    second = make_generator_trainer("b", eval_batch_size=7, dataloader_num_workers=1, **fields).evaluate()
    other = make_generator_trainer("c", seed=1).evaluate()

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


def test_evaluation_changes_nothing(make_generator_trainer: MakeTrainer) -> None:
    """Weights, random numbers and the mode of the model are the same after an evaluation with samples."""
    trainer = make_generator_trainer(num_distance_images=4)
    trainer.train_step([batch_of(trainer)])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random = torch.get_rng_state()

    trainer.evaluate()

    assert trainer.model.training and not trainer.model.tokenizer.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_samples_are_of_the_same_seeds_each_time(make_generator_trainer: MakeTrainer) -> None:
    """The sheet of an unchanged model is the same, whatever was drawn before and however it is cut in batches."""
    first = make_generator_trainer("a", num_sample_images=10).samples()
    torch.manual_seed(99)
    second = make_generator_trainer("b", num_sample_images=10, eval_batch_size=64).samples()

    assert np.array_equal(np.asarray(first), np.asarray(second))


# ---- publishing


def test_samples_are_drawn_as_asked_and_the_card_says_how(make_generator_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Temperatures change the picture and stand in the code of the card."""
    plain = make_generator_trainer(max_steps=1, eval_steps=0, save_steps=0)
    sharp = make_generator_trainer("sharp", max_steps=1, sample_temperature=0.01, sample_choice_temperature=0.0)
    assert plain.samples().tobytes() != sharp.samples().tobytes()

    sharp.train()
    card = (tmp_path / "sharp" / "final" / "README.md").read_text()
    assert "num_steps=2, guidance_scale=3.0, temperature=0.01, choice_temperature=0.0" in card


def test_the_final_folder_is_a_whole_hub_repository(make_generator_trainer: MakeTrainer, tmp_path: Path) -> None:
    """It loads with AutoModel and AutoImageProcessor and makes the trainer's images; the card has the numbers."""
    trainer = make_generator_trainer(num_distance_images=4)
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


def test_a_run_without_held_out_data_still_shows_samples(make_generator_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Nothing is measured, and the card says so."""
    trainer = make_generator_trainer(max_steps=2)
    trainer.eval_dataset = None
    trainer.train()

    assert (tmp_path / "out" / "final" / "samples.png").exists()
    assert "Not measured." in (tmp_path / "out" / "final" / "README.md").read_text()


def test_the_final_model_is_published_in_one_commit(
    hub: HubServer, make_generator_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """What the run pushes is the final folder, and `from_hub` loads it."""
    make_generator_trainer(push_to_hub=True, hub_model_id="tiny-maskgit", max_steps=2).train()

    history = hub.store.repositories["models", "alice/tiny-maskgit"].history()
    assert [commit.title for commit in history] == ["Upload model of step 2", "initial commit"]
    for path in (tmp_path / "out" / "final").iterdir():
        assert hub.store.read("alice/tiny-maskgit", path.name) == path.read_bytes(), path.name
    model, processor = hf_vq.from_hub("alice/tiny-maskgit")
    assert isinstance(model, MaskGitModel) and processor.crop_size["height"] == 16
