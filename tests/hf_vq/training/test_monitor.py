"""The monitor sees what it says, changes nothing, and leaves one whole record however often a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from hf_vq import VectorQuant, no_vq
from hf_vq.training.monitor import CodebookMonitor, _shown
from hf_vq.training.random_state import random_state
from hf_vq.training.snapshots import CodebookSnapshot, load_snapshots

from .stopped_runs import stop_after

MakeTrainer = Callable[..., Any]


SEEN = (0, 1, 2, 4, 5)  # five of seven images, evenly spaced


def assert_same_snapshots(first: list[CodebookSnapshot], second: list[CodebookSnapshot]) -> None:
    """Two records agree to the bit."""
    assert [snapshot.step for snapshot in first] == [snapshot.step for snapshot in second]
    for one, other in zip(first, second, strict=True):
        assert one.metrics == other.metrics
        for name in ("embeddings", "codes", "code_ids", "uses"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_monitored_run_is_the_run_without_a_monitor(
    make_trainer: MakeTrainer, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]], runs: Any
) -> None:
    """Weights, averages, optimizers, quantizer, random numbers and metrics end bit-equal, with everything on."""
    fields, model = everything
    settings = {**fields, "max_steps": 5, "save_steps": 0, "eval_steps": 3}
    make_trainer("without", model, **settings).train()
    make_trainer("with", model, **settings, monitor_steps=1, monitor_images=5).train()

    runs.assert_same_run(tmp_path / "without", tmp_path / "with")
    assert [snapshot.step for snapshot in load_snapshots(tmp_path / "with" / "codebook")] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "without" / "codebook").exists()


def test_observing_touches_no_bit_of_the_trainer(
    make_trainer: MakeTrainer, everything: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Gradients, buffers, modes, training-only state and random numbers are those of before."""
    fields, model = everything
    trainer = make_trainer("out", model, **fields, max_steps=2, monitor_steps=1)
    trainer.train()
    trainer.model.train()
    trainer.model.decoder.eval()
    trainer.ema.module.train()
    for weight in trainer.model.parameters():
        weight.grad = torch.full_like(weight, 0.5)

    def state() -> list[Any]:
        tensors = [*trainer.model.state_dict().values(), *trainer.ema.module.state_dict().values()]
        tensors += [value for layer in trainer.quantizers for value in layer.training_state().values()]
        tensors += [weight.grad for weight in trainer.model.parameters()]
        numbers = random_state()
        flags = [module.training for module in (*trainer.model.modules(), *trainer.ema.module.modules())]
        return [tensor.clone() for tensor in (*tensors, numbers["torch"], numbers["numpy"][1])] + [flags]

    *before, flags_before = state()
    trainer.callbacks[0].observe(trainer)
    *after, flags_after = state()

    assert all(map(torch.equal, before, after)) and len(before) == len(after)
    assert flags_before == flags_after
    assert trainer.quantizers[0].enabled and not trainer.quantizers[0]._forward_hooks


def test_a_resumed_run_goes_on_in_the_same_record(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Each step is there once and bit-equal, also steps that a killed run had seen after its last checkpoint."""
    settings: dict[str, Any] = {"max_steps": 7, "save_steps": 3, "monitor_steps": 2}
    make_trainer("straight", **settings).train()

    stop_after(make_trainer("resumed", **settings), step=5)
    folder = tmp_path / "resumed" / "codebook"
    assert [snapshot.step for snapshot in load_snapshots(folder)] == [1, 2, 4]
    (folder / ".tmp-step-0000006.safetensors").write_bytes(b"cut off")
    resumed = make_trainer("resumed", **settings, resume_from_checkpoint="latest")
    resumed._open_run()
    assert [snapshot.step for snapshot in load_snapshots(folder)] == [1, 2]
    make_trainer("resumed", **settings, resume_from_checkpoint="latest").train()

    snapshots = load_snapshots(folder)
    assert [snapshot.step for snapshot in snapshots] == [1, 2, 4, 6, 7]
    assert_same_snapshots(snapshots, load_snapshots(tmp_path / "straight" / "codebook"))
    assert len(list(folder.iterdir())) == 5


def test_a_new_run_deletes_the_record_of_the_old_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """overwrite_output_dir does not leave snapshots of another run behind."""
    make_trainer(max_steps=6, monitor_steps=2).train()
    make_trainer(max_steps=3, monitor_steps=3, overwrite_output_dir=True).train()

    assert [snapshot.step for snapshot in load_snapshots(tmp_path / "out" / "codebook")] == [1, 3]


def test_metrics_are_what_they_say(make_trainer: MakeTrainer, images: Any) -> None:
    """Every number equals the one computed from the model at hand, in one pass over all images."""
    trainer = make_trainer(max_steps=3, monitor_steps=3, monitor_images=5)
    trainer.train()
    (snapshot,) = [found for found in load_snapshots(trainer.output_dir / "codebook") if found.step == 3]
    model = trainer.model.eval()
    pixels = torch.stack([images(7)[index]["pixel_values"] for index in SEEN])

    latents = model.quant_conv(model.encoder(pixels)).detach().requires_grad_()
    quantized, out = model.quantize(latents)
    gradients, losses = [], []
    for states in (quantized, latents):
        loss = mse_loss(model.decoder(model.post_quant_conv(states)), pixels) / 4
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, latents)[0].double())
    p, c = latents.detach().movedim(1, -1).flatten(0, -2).double(), model.quantize.get_codebook().double()
    spread = p.var(0, correction=0).sum().sqrt()
    stds = [x.std(0, correction=0) for x in (p, c)]
    shares = torch.bincount(out.q.flatten(), minlength=16) / len(p)
    expected = {
        "perplexity": (-torch.xlogy(shares, shares).sum()).exp(),
        "usage": (shares > 0).double().mean(),
        "active_codes": (shares > 0).sum(),
        "quantization_error": (out.z - out.z_q).square().sum(-1).mean() / spread**2,
        "spread": spread,
        "mean_distance": (p.mean(0) - c.mean(0)).norm() / spread,
        "std_distance": (stds[0] - stds[1]).norm() / spread,
        "gradient_gap": (gradients[0] - gradients[1]).norm() / gradients[1].norm(),
        "gradient_cosine": torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0),
        "task_loss": losses[0],
        "unquantized_task_loss": losses[1],
    }
    assert snapshot.metrics.keys() == expected.keys() | {"wasserstein_distance"}
    for name, value in expected.items():
        assert snapshot.metrics[name] == pytest.approx(float(value), rel=1e-4), name
    assert 0.01 < snapshot.metrics["gradient_gap"]  # the comparison above would also hold of two zeros
    assert torch.equal(snapshot.codes, model.quantize.get_codebook())
    assert torch.equal(snapshot.uses, torch.bincount(out.q.flatten(), minlength=16))


@pytest.mark.parametrize("norm", ["none", "l2"])
def test_without_quantization_error_there_is_no_gap(make_trainer: MakeTrainer, images: Any, norm: str) -> None:
    """Codes that are the embeddings themselves leave the gradient as it is, and the moments of P and C equal."""
    trainer = make_trainer(model={"num_codes": 80, "norm": norm, "cb_norm": norm}, max_steps=1, monitor_images=5)
    trainer.train()
    pixels = torch.stack([images(7)[index]["pixel_values"] for index in SEEN])
    with torch.no_grad():
        trainer.model.eval()
        vectors = trainer.model.encode(pixels).last_hidden_state.movedim(1, -1).flatten(0, -2)
        assert len(vectors) == 80
        if norm == "l2":
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        trainer.model.quantize.codebook.rewrite(vectors, torch.ones(80, dtype=torch.bool))
    monitor = CodebookMonitor(every=1, num_images=5)
    monitor.on_train_begin(trainer)
    metrics = monitor.observe(trainer).metrics

    assert metrics["gradient_gap"] < 1e-3 and metrics["gradient_cosine"] > 1 - 1e-6
    assert metrics["quantization_error"] < 1e-9
    assert max(metrics["mean_distance"], metrics["std_distance"], metrics["wasserstein_distance"]) < 1e-3


def test_what_is_kept_has_a_bound_and_comes_from_everywhere(make_trainer: MakeTrainer, images: Any) -> None:
    """Of many vectors and codes a fixed number is kept, the same ones each time, from all images and places."""
    trainer = make_trainer(max_steps=1)
    trainer.train()
    monitor = CodebookMonitor(every=1, num_images=5, max_points=10)
    monitor.on_train_begin(trainer)
    first, second = monitor.observe(trainer), monitor.observe(trainer)

    assert_same_snapshots([first], [second])
    assert first.embeddings.shape == (10, 4) and 8 <= len(first.codes) <= 10
    assert first.code_ids.tolist() == sorted({*first.code_ids.tolist()}) and first.code_ids[-1] == 15
    assert first.uses.shape == (16,) and first.uses.sum() == 5 * 16
    assert first.used.tolist() == (first.uses[first.code_ids] > 0).tolist()
    pixels = torch.stack([images(7)[index]["pixel_values"] for index in SEEN])
    with torch.no_grad():
        latents = trainer.model.eval().encode(pixels).last_hidden_state.movedim(1, -1).flatten(1, 2)
    places = [[(image + offset) % 16 for offset in (0, 8)] for image in range(5)]
    torch.testing.assert_close(first.embeddings, torch.cat([latents[i, place] for i, place in enumerate(places)]))


def test_codes_in_use_are_kept_however_few_they_are() -> None:
    """Of a large codebook that has collapsed."""
    uses = torch.zeros(100, dtype=torch.int64)
    uses[[7, 8, 93]] = 5
    shown = _shown(uses, 20)
    assert {0, 7, 8, 93, 99} <= {*shown.tolist()} and 17 <= len(shown) <= 20
    assert shown.tolist() == sorted({*shown.tolist()})


def test_what_is_not_finite_is_no_perfect_gap(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """A decoder of NaN makes the gap NaN; an embedding of NaN the moments, and neither stops the run."""
    trainer = make_trainer(max_steps=1)
    trainer.train()
    monitor = CodebookMonitor(every=1, num_images=5)
    monitor.on_train_begin(trainer)
    with torch.no_grad():
        next(iter(trainer.model.decoder.parameters())).fill_(torch.nan)
    metrics = monitor.observe(trainer).metrics
    assert math.isnan(metrics["gradient_gap"]) and math.isnan(metrics["task_loss"]) and metrics["spread"] > 0
    monitor.batches[0]["pixel_values"][0] = torch.nan
    assert math.isnan(monitor.observe(trainer).metrics["wasserstein_distance"])


def test_only_the_watched_layer_is_switched_off(make_trainer: MakeTrainer) -> None:
    """A layer before it quantizes in both passes, so that both have one input."""
    trainer = make_trainer(max_steps=1)
    trainer.train()
    model = trainer.model
    before = model.quant_conv
    before.add_module("inner", VectorQuant(4, 16, dim=1, kmeans_init=False))
    before.register_forward_hook(lambda module, _, out: module.inner(out)[0])
    seen: list[torch.Tensor] = []
    model.quantize.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    monitor = CodebookMonitor(every=1, num_images=1, layer=model.quantize)
    monitor.on_train_begin(trainer)
    monitor.observe(trainer)
    assert torch.equal(seen[0], seen[1])


def test_one_monitor_watches_one_trainer_after_another(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Each trainer's own layer; a second monitor of the same trainer needs a name."""
    monitor = CodebookMonitor(every=1, num_images=2)
    for name in ("first", "second"):
        trainer = make_trainer(name, max_steps=1)
        trainer.callbacks += [monitor, CodebookMonitor(every=1, num_images=5, name="more")]
        trainer.train()
        folder = tmp_path / name / "codebook"
        assert [int(s.uses.sum()) for path in (folder, folder / "more") for s in load_snapshots(path)] == [32, 80]
    trainer = make_trainer("third", max_steps=1)
    trainer.callbacks += [monitor, CodebookMonitor(every=1)]
    with pytest.raises(ValueError, match="would write into one folder: both have the name ''"):
        trainer.train()


def test_a_resume_without_a_monitor_leaves_no_steps_of_the_abandoned_stretch(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Which the resumed run goes through again, on other ways perhaps."""
    stop_after(make_trainer(max_steps=6, save_steps=2, monitor_steps=1), step=3)
    make_trainer(max_steps=6, save_steps=2, resume_from_checkpoint="latest").train()
    assert [snapshot.step for snapshot in load_snapshots(tmp_path / "out" / "codebook")] == [1, 2]


def test_a_look_keeps_no_graph_of_the_encoder(make_trainer: MakeTrainer) -> None:
    """The gradient ends at the layer, so what lies before it runs without, in batches that training has room for."""
    trainer = make_trainer(max_steps=1, eval_batch_size=5, train_batch_size=2)
    trainer.train()
    seen: list[tuple[int, bool]] = []
    trainer.model.encoder.register_forward_hook(lambda _, __, out: seen.append((len(out), out.requires_grad)))
    monitor = CodebookMonitor(every=1, num_images=5)
    monitor.on_train_begin(trainer)
    monitor.observe(trainer)
    assert seen == [(2, False)] * 4 + [(1, False)] * 2


def test_what_cannot_be_watched_is_refused(make_trainer: MakeTrainer) -> None:
    """No held-out images, no layer or several, and numbers out of range are errors that say what to do."""
    trainer = make_trainer()
    with pytest.raises(ValueError, match="observes after on_train_begin"):
        CodebookMonitor(10).observe(trainer)
    with pytest.raises(ValueError, match="not the trainer's model's"):
        CodebookMonitor(10, layer=VectorQuant(4, 16)).on_train_begin(trainer)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="which TokenizerTrainer lacks"):
        patch.delattr(type(trainer), "task_loss")
        CodebookMonitor(10).on_train_begin(trainer)
    monitor = CodebookMonitor(10)
    monitor.on_train_begin(trainer)
    with no_vq(trainer.model), pytest.raises(ValueError, match="the watched layer is switched off"):
        monitor.observe(trainer)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="give the trainer an eval_dataset"):
        CodebookMonitor(10).on_train_begin(trainer)
    with pytest.raises(ValueError, match="0 quantizer layers"):
        trainer.model = torch.nn.Linear(1, 1)
        CodebookMonitor(10).on_train_begin(trainer)
    with pytest.raises(ValueError, match="every >= 1"):
        CodebookMonitor(0)
    with pytest.raises(ValueError, match="got 1, 65 and 64"):
        CodebookMonitor(1, num_images=65, max_points=64)
    with pytest.raises(ValueError, match="monitor_images must be from 1 to 2048"):
        make_trainer(monitor_images=3000)
    with pytest.raises(ValueError, match="monitor_steps must be 0 or more"):
        make_trainer(monitor_steps=-1)


def test_a_snapshot_that_cannot_be_written_stops_the_run(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The error names the file, and no half-written one stays."""
    trainer = make_trainer(max_steps=2, monitor_steps=1)
    save = CodebookSnapshot.save

    def fail(self: CodebookSnapshot, path: Path) -> None:
        save(self, path)
        raise OSError("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CodebookSnapshot, "save", fail)
        with pytest.raises(RuntimeError, match=r"step-0000001.safetensors': no space left"):
            trainer.train()
    assert list((tmp_path / "out" / "codebook").iterdir()) == []
