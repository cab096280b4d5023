"""Watches a codebook in training: where embeddings and codes lie, and the error of the straight-through gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_vq.metrics.base import perplexity
from hf_vq.modeling.base_quantizer_vq import Quantizer, get_vq_layers
from hf_vq.modeling.quantizer_output_vq import QuantizerOutput
from hf_vq.training.callbacks import ObservedTrainer, TrainerCallback
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.training.order import Batch, evaluation_batches
from hf_vq.training.random_state import preserved_random_state
from hf_vq.training.snapshots import SNAPSHOTS_FOLDER, CodebookSnapshot, moment_distances
from hf_vq.utils.files import atomic_file
from hf_vq.utils.processes import on_main_process, sum_over_processes


class CodebookMonitor(TrainerCallback):
    """Writes a `CodebookSnapshot` of one quantizer layer in `output_dir/codebook`, always of the same images.

    These are held-out ones, evenly spaced.

    The snapshots are of step 1 (before it, a k-means codebook does not exist), of every `every` steps and of the last
    one. Each is a file of its own that appears whole or not at all, and nothing is kept in memory. A resumed run goes
    on in the same folder and drops what was written after the step that it goes on from.

    The model is looked at in eval mode, with the weights in training (not their average) in float32, and left as it
    was: weights, gradients, buffers and random numbers, so a run with a monitor ends bit-equal with one without. It
    costs two passes over the images, forward and through the decoder backward. All sums are float64, over all ranks:
    N processes collect the numbers of one.

    Metrics of a snapshot, over all vectors of the images, P being the vectors that the layer compares with its codes:

    - `perplexity`, `usage`, `active_codes` of the codes;
    - `quantization_error`: mean of `|z - z_q|^2` in units of P's total variance; 1 is what P's mean alone would do;
    - `spread`, `mean_distance`, `std_distance`, `wasserstein_distance` of P and C, see `moment_distances`;
    - `gradient_gap`: `|g_q - g| / |g|`, with g the gradient of the trainer's `task_loss` at the layer's input without
      quantization (with its `norm`) and g_q the one that the gradient estimator gives, over all images together;
    - `gradient_cosine`: `g_q . g / (|g_q| |g|)`;
    - `task_loss`, `unquantized_task_loss`: means over the images.

    A grouped layer's groups are pooled. P of a residual layer are its inputs, not the residuals of its levels, so its
    distances say little. What is not finite makes the numbers that it is part of NaN.

    Args:
        every: Steps between two snapshots.
        num_images: Held-out images, over all ranks.
        max_points: At most so many embeddings, and codes, are kept for pictures, chosen by their places alone.
        layer: The layer to watch, for models with several.
        name: Of a sub-folder for the snapshots, for trainers with several monitors.

    Raises:
        ValueError: A number is out of range, or (when training begins) the model has no such layer, the trainer no
            held-out images, or another monitor the same folder.

    Example:

        >>> trainer.callbacks.append(CodebookMonitor(every=100))
        >>> trainer.train()
        >>> snapshots = load_snapshots("out/codebook")
    """

    def __init__(
        self,
        every: int,
        num_images: int = 64,
        max_points: int = 2048,
        layer: Quantizer | None = None,
        name: str = "",
    ) -> None:
        if every < 1 or int(every) != every or not 1 <= num_images <= max_points:
            raise ValueError(
                f"expected every >= 1 and 1 <= num_images <= max_points, got {every}, {num_images} and {max_points}"
            )
        self.every, self.num_images, self.max_points = every, num_images, max_points
        self.layer, self.name = layer, name
        self.watched: Quantizer | None = None
        self.batches: list[Batch] = []
        self.batch_size = 0

    def on_train_begin(self, trainer: ObservedTrainer) -> None:
        """Reads the images."""
        _task_loss(trainer)
        self.watched = _watched_layer(trainer.model, self.layer)
        if trainer.eval_dataset is None:
            raise ValueError("a codebook monitor needs held-out images: give the trainer an eval_dataset.")
        others = [other for other in trainer.callbacks if isinstance(other, CodebookMonitor) and other is not self]
        if any(other.name == self.name for other in others):
            raise ValueError(f"two codebook monitors would write into one folder: both have the name {self.name!r}.")
        accelerator = trainer.accelerator
        self.batch_size = min(trainer.args.eval_batch_size, trainer.args.train_batch_size)  # training has room for it
        with preserved_random_state():
            self.batches = list(
                evaluation_batches(
                    trainer.eval_dataset,
                    self.batch_size,
                    self.num_images,
                    accelerator.process_index,
                    accelerator.num_processes,
                )
            )
        if accelerator.is_main_process:
            (trainer.output_dir / SNAPSHOTS_FOLDER / self.name).mkdir(parents=True, exist_ok=True)

    def on_step_end(self, trainer: ObservedTrainer) -> None:
        """Takes a snapshot where one is due."""
        step = trainer.step
        if step != 1 and step % self.every and step != trainer.args.max_steps:
            return
        snapshot = self.observe(trainer)
        path = trainer.output_dir / SNAPSHOTS_FOLDER / self.name / CodebookSnapshot.file_name(step)

        def write() -> None:
            try:
                with atomic_file(path) as temporary:
                    snapshot.save(temporary)
            except Exception as reason:  # a full disk shows as OSError or SafetensorError
                raise CheckpointError(f"Could not write the snapshot '{path}': {reason}") from reason

        on_main_process(write, trainer.accelerator)

    def observe(self, trainer: ObservedTrainer) -> CodebookSnapshot:
        """The snapshot of this moment; every rank must call it, and gets the same."""
        if self.watched is None:
            raise ValueError("a codebook monitor observes after on_train_begin, which reads its images.")
        if not self.watched.enabled:
            raise ValueError("the watched layer is switched off, by no_vq or `enabled`: there is nothing to observe.")
        accelerator = trainer.accelerator
        sums = _Sums(self.watched, self.num_images, self.max_points)
        with _as_in_evaluation(trainer), preserved_random_state():
            for number, batch in enumerate(self.batches):
                quantized = _look(trainer, self.watched, batch)
                plain = _look(trainer, self.watched, batch, quantized=False)
                first = number * self.batch_size  # dealt out like cards, see evaluation_batches
                images = first + torch.arange(len(batch["pixel_values"]))
                sums.add(images * accelerator.num_processes + accelerator.process_index, quantized, plain)
        return sums.snapshot(trainer)


class _Sums:
    """What a snapshot is made of, as sums over images, which ranks can add up."""

    def __init__(self, layer: Quantizer, num_images: int, max_points: int) -> None:
        self.layer, self.max_points = layer, max_points
        self.per_image = max_points // num_images
        self.uses = torch.zeros(layer.num_codes, dtype=torch.int64)
        size = layer.code_dim + 1
        self.products = torch.zeros(size, size, dtype=torch.float64)  # sums of x x^T with x = (z, 1)
        # Squared error of the vectors; of the gradients g_q and g: g_q.g_q, g.g, g_q.g; the losses; images.
        self.numbers = torch.zeros(7, dtype=torch.float64)
        self.points = torch.zeros(num_images, self.per_image, layer.code_dim)
        self.filled = torch.zeros(num_images, self.per_image, dtype=torch.int64)

    def add(self, places: Tensor, quantized: _Look, plain: _Look) -> None:
        """Adds a batch whose images have these places among all."""
        seen = quantized.output
        assert seen.z is not None and seen.z_q is not None and seen.q is not None
        # (images, vectors of an image, code_dim), also where windows have the place of images.
        z = seen.z.detach().cpu().reshape(len(places), -1, self.layer.code_dim)
        self.uses += torch.bincount(seen.q.flatten(), minlength=self.layer.num_codes).cpu()
        x = nn.functional.pad(z.flatten(0, 1).double(), (0, 1), value=1.0)
        self.products += x.T @ x
        error = (seen.z.detach() - seen.z_q.detach()).cpu().double().square().sum()
        with_vq, without = (look.gradient.cpu().double().flatten() for look in (quantized, plain))
        dots = [with_vq @ with_vq, without @ without, with_vq @ without]
        self.numbers += torch.stack([error, *dots, *torch.tensor([quantized.loss, plain.loss, len(z)]).double()])
        count = min(self.per_image, z.shape[1])
        spaced = torch.arange(count) * z.shape[1] // count
        for image, place in zip(z, places.tolist(), strict=True):
            # Another offset for each image, or all would show the same places of the grid.
            self.points[place, :count] = image[(spaced + place) % z.shape[1]].float()
            self.filled[place, :count] = 1

    def snapshot(self, trainer: ObservedTrainer) -> CodebookSnapshot:
        """The sums over all ranks, as a snapshot."""
        uses, products, numbers, points, filled = (
            sum_over_processes(tensor, trainer.accelerator)
            for tensor in (self.uses, self.products, self.numbers, self.points, self.filled)
        )
        error, quantized, plain, dot, loss, plain_loss, images = numbers.tolist()
        codes = self.layer.get_codebook().cpu()
        count = products[-1, -1].clamp(min=1)
        mean = products[-1, :-1] / count
        covariance = products[:-1, :-1] / count - mean.outer(mean)
        doubles = codes.double()
        distances = moment_distances(
            mean, covariance, doubles.mean(0), doubles.T.cov(correction=0).reshape_as(covariance)
        )
        if not images:
            raise ValueError("a codebook monitor needs held-out images: the eval_dataset is empty.")
        tiny = 1e-150
        metrics = {
            "perplexity": perplexity(uses),
            "usage": float((uses > 0).double().mean()),
            "active_codes": float((uses > 0).sum()),
            "quantization_error": error / float(count) / max(distances["spread"] ** 2, tiny),
            **distances,
            # |g_q - g|^2 from the products; rounding may take it below zero. In this order NaN stays NaN.
            "gradient_gap": (max(quantized - 2 * dot + plain, 0.0) / max(plain, tiny)) ** 0.5,
            "gradient_cosine": dot / max((quantized * plain) ** 0.5, tiny),
            "task_loss": loss / images,
            "unquantized_task_loss": plain_loss / images,
        }
        shown = _shown(uses, self.max_points)
        return CodebookSnapshot(
            step=trainer.step,
            metrics=metrics,
            embeddings=points[filled.bool()],
            codes=codes[shown].float(),
            code_ids=shown,
            uses=uses,
        )


def _shown(uses: Tensor, limit: int) -> Tensor:
    """Ids of at most `limit` codes, evenly spaced, of which up to a quarter are used ones, however few these are."""

    def spaced(ids: Tensor, count: int) -> Tensor:
        return ids[torch.linspace(0, len(ids) - 1, min(len(ids), count)).round().long()]

    ids = torch.arange(len(uses))
    if len(ids) <= limit:
        return ids
    used = spaced(uses.nonzero().flatten(), limit // 4)
    return torch.cat([used, spaced(ids, limit - len(used))]).unique()


class _Look(NamedTuple):
    """Of a batch: the layer's output; gradient (at its input) and value of the task loss, summed over images."""

    output: QuantizerOutput
    gradient: Tensor
    loss: float


def _look(trainer: ObservedTrainer, layer: Quantizer, batch: Batch, quantized: bool = True) -> _Look:
    inputs: list[Tensor] = []
    outputs: list[QuantizerOutput] = []

    def cut(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)  # from here on: the graph of what lies before would be of no use
        inputs.append(arguments[0].detach().requires_grad_())  # a leaf: no gradient goes further, or into weights
        return (inputs[-1], *arguments[1:])

    def keep(_: nn.Module, __: Any, result: tuple[Tensor, QuantizerOutput]) -> tuple[Tensor, QuantizerOutput]:
        outputs.append(layer.complete(result[1], inputs[-1], result[0]))
        return result if quantized else (layer.unquantized(inputs[-1]), result[1])

    hooks = [layer.register_forward_pre_hook(cut), layer.register_forward_hook(keep)]
    try:
        with torch.no_grad():
            loss = _task_loss(trainer)(batch)
            if not inputs:
                raise ValueError("the watched layer was not run on the task loss: watch another one.")
            loss = loss * len(batch["pixel_values"])
            (gradient,) = torch.autograd.grad(loss, inputs[-1])
    finally:
        for hook in hooks:
            hook.remove()
    return _Look(outputs[-1], gradient, loss.item())


@contextmanager
def _as_in_evaluation(trainer: ObservedTrainer) -> Iterator[None]:
    """The model in eval mode with the statistics of all ranks; afterwards every bit of it is as before."""
    modes = [(module, module.training) for module in trainer.model.modules()]
    statistics = trainer.running_statistics()
    own = [statistic.clone() for statistic in statistics]
    try:
        trainer.model.eval()
        trainer.average_statistics()
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for statistic, value in zip(statistics, own, strict=True):
                statistic.copy_(value)
        if trainer.ema is not None:  # it followed the averages above
            trainer.ema.copy_buffers(trainer.model)


def _task_loss(trainer: ObservedTrainer) -> Callable[[Batch], Tensor]:
    """The trainer's method that computes the task loss of a batch; not every trainer has one."""
    method: Callable[[Batch], Tensor] | None = getattr(trainer, "task_loss", None)
    if method is None:
        raise ValueError(f"a codebook monitor needs a trainer's `task_loss`, which {type(trainer).__name__} lacks.")
    return method


def _watched_layer(model: nn.Module, layer: Quantizer | None) -> Quantizer:
    layers = get_vq_layers(model)
    if layer is not None:
        if all(layer is not other for other in layers):
            raise ValueError("the `layer` of a codebook monitor is not the trainer's model's: see get_vq_layers.")
        return layer
    if len(layers) != 1:
        raise ValueError(
            f"the model has {len(layers)} quantizer layers: a codebook monitor watches one, name it with its `layer`."
        )
    return layers[0]
