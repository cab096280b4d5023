"""The monitor sees what it says, changes nothing, and leaves one whole record however often a run is resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from hf_vq.codebook_record import CodebookSnapshot, load_snapshots
from hf_vq.training.codebook_monitor import CodebookMonitor
from hf_vq.training.run_state import random_state

MakeTrainer = Callable[..., Any]


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
    pixels = torch.stack([images(7)[index]["pixel_values"] for index in range(5)])

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


def test_without_quantization_error_there_is_no_gap(make_trainer: MakeTrainer, images: Any) -> None:
    """Codes that are the embeddings themselves leave the gradient as it is, and the moments of P and C equal."""
    trainer = make_trainer(model={"num_codes": 80}, max_steps=1, monitor_images=5)
    trainer.train()
    pixels = torch.stack([images(7)[index]["pixel_values"] for index in range(5)])
    with torch.no_grad():
        trainer.model.eval()
        vectors = trainer.model.encode(pixels).last_hidden_state.movedim(1, -1).flatten(0, -2)
        assert len(vectors) == 80
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
    assert first.embeddings.shape == (10, 4) and first.codes.shape == (10, 4)
    assert first.code_ids.tolist() == sorted({*first.code_ids.tolist()}) and first.code_ids[-1] == 15
    assert first.uses.shape == (16,) and first.uses.sum() == 5 * 16
    assert first.used.tolist() == (first.uses[first.code_ids] > 0).tolist()
    pixels = torch.stack([images(7)[index]["pixel_values"] for index in range(5)])
    with torch.no_grad():
        latents = trainer.model.eval().encode(pixels).last_hidden_state.movedim(1, -1).flatten(1, 2)
    places = [[(image + offset) % 16 for offset in (0, 8)] for image in range(5)]
    torch.testing.assert_close(first.embeddings, torch.cat([latents[i, place] for i, place in enumerate(places)]))


def test_what_cannot_be_watched_is_refused(make_trainer: MakeTrainer) -> None:
    """No held-out images, no layer or several, and numbers out of range are errors that say what to do."""
    trainer = make_trainer()
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
