"""The autoencoder experiment that the quality tables share: one small network, one budget, any quantizer.

The network is an SQ-VAE with 64 channels for 32 px images and 1,024 codes. It trains on batches of 32 with AdamW 3e-4,
a one-cycle schedule and the mean squared error. The photographs are those that scikit-learn and scikit-image ship, cut
into tiles and split by photograph. Settings are chosen on `VALIDATION_PHOTOS`. For the tables these photographs train
as well, and `TEST_PHOTOS` are measured.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from foreign_quantizers import ForeignQuantizer
from PIL import Image
from torch import nn

from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VectorQuant, VQConfig, VQModel
from hf_vq.modeling.kmeans_vq import kmeans
from hf_vq.modeling.nearest_vq import nearest_code
from hf_vq.training.callbacks import ObservedTrainer, TrainerCallback
from hf_vq.training.networks import MODEL
from hf_vq.training.order import TrainingData

NUM_CODES = 1024
SIZE = 32
TRAIN_PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg")
VALIDATION_PHOTOS = ("flower.jpg", "astronaut.png")
MAX_SIDE = 1536  # px; larger photographs are shrunk to this
TEST_PHOTOS = (
    "china.jpg",
    "motorcycle_left.png",
)  # the most varied ones, so that codes have a use


def emoji() -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out images of the shipped sample, `(N, 3, 32, 32)` in [-1, 1]."""
    import hf_vq

    folder = Path(hf_vq.__file__).parent / "data" / "noto_emoji_32"
    splits = []
    for split in ("train", "test"):
        rows = pyarrow.parquet.read_table(folder / f"{split}.parquet").column("image").to_pylist()
        images = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows]
        splits.append(_to_pixels(np.stack(images)))
    return splits[0], splits[1]


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Training tiles (stride 16) and tiles of held-out photographs (stride 32), in the format of `emoji`."""
    return _tiles(TRAIN_PHOTOS + VALIDATION_PHOTOS, 16), _tiles(TEST_PHOTOS, SIZE)


def validation() -> tuple[torch.Tensor, torch.Tensor]:
    """Like `photographs`, but for choosing settings. Neither half contains a test photograph."""
    return _tiles(TRAIN_PHOTOS, 16), _tiles(VALIDATION_PHOTOS, SIZE)


def overlapping() -> torch.Tensor:
    """The held-out tiles of `photographs` with a stride of 8. They are 15 times as many, so rare codes show up too."""
    return _tiles(TEST_PHOTOS, 8)


def photo(name: str) -> np.ndarray:
    """Pixels `(H, W, 3)` of a photograph, shrunk if it is large.

    Args:
        name: An absolute path, or a file name that scikit-image or scikit-learn ships.
    """
    path = Path(name)
    if not path.is_absolute():
        import skimage
        import sklearn.datasets

        folders = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
        path = next(folder / name for folder in folders if (folder / name).exists())
    with Image.open(path) as found:
        image = found.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(image)


def _tiles(names: tuple[str, ...], stride: int) -> torch.Tensor:
    found = []
    for name in names:
        image = photo(name)
        windows = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE), (0, 1))[::stride, ::stride]
        found.append(windows.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
    return _to_pixels(np.concatenate(found))


def _to_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


DATA = {"emoji": emoji, "photographs": photographs, "validation": validation}


SPLITS: dict[str, Any] = {
    "emoji": "the shipped sample, as it is split",
    "photographs": {"train": TRAIN_PHOTOS + VALIDATION_PHOTOS, "test": TEST_PHOTOS, "tiles": "stride 16; 32 in test"},
    "validation": {"train": TRAIN_PHOTOS, "test": VALIDATION_PHOTOS, "tiles": "stride 16; 32 in test"},
}
PROTOCOL = {
    "network": "SQ-VAE, 64 channels, 32 px, 8 x 8 tokens",
    "optimizer": "AdamW, one-cycle learning rate with a peak of 3e-4, betas 0.9 and 0.95, weight decay 1e-4",
    "batch_size": 32,
    "loss": "mean squared error, and the row's weight times the quantizer's loss",
}


def build(
    quantizer: dict | Callable[[int], nn.Module] | None, embed_dim: int = 64, seed: int = 0, num_codes: int = NUM_CODES
) -> VQModel:
    """The autoencoder with a quantizer of your choice.

    Args:
        quantizer: Arguments of `VectorQuant`, or a function from the dimension of the codes to another library's
            layer, or None for the model's own default.
        embed_dim: Dimension of the codes.
        seed: Seed of the weights.
        num_codes: Codes of the quantizer.
    """
    torch.manual_seed(seed)
    config = VQConfig(
        architecture="sqvae",
        image_size=SIZE,
        base_channels=64,
        num_codes=num_codes,
        embed_dim=embed_dim,
        kmeans_init=False,
    )
    model = VQModel(config)
    if isinstance(quantizer, dict):
        model.quantize = VectorQuant(embed_dim, num_codes, **quantizer)
    elif quantizer is not None:
        model.quantize = ForeignQuantizer(quantizer(embed_dim), embed_dim, num_codes)
    return model


class RandomBatches(TrainingData):
    """Batches that are drawn with replacement, as the tables were made."""

    def batches(self, step: int) -> Iterator[Any]:
        """Draws batches without end; a run always begins at step 0."""
        images = self.dataset.images
        order = torch.Generator().manual_seed(self.args.seed)
        while True:
            chosen = torch.randint(len(images), (self.args.train_batch_size,), generator=order)
            yield {"pixel_values": images[chosen.to(images.device)]}


class Images(list):
    """Images (number, channels, height, width) as a data set; `images` has them in one tensor."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__({"pixel_values": image} for image in images)
        self.images = images


class Experiment(TokenizerTrainer):
    """As the tables were made: batches are drawn with replacement, and PyTorch's schedule moves the betas, too."""

    def __init__(self, model: VQModel, args: TokenizerTrainingArguments, images: torch.Tensor) -> None:
        super().__init__(model, args, Images(images))
        self.data = RandomBatches(self.train_dataset, args, rank=0, world_size=1)
        self.networks.schedules[MODEL] = torch.optim.lr_scheduler.OneCycleLR(  # type: ignore[assignment]
            self.networks.optimizers[MODEL], args.learning_rate, total_steps=args.max_steps
        )


class Clock(TrainerCallback):
    """Times the steps of a run, without what comes before and after them."""

    def on_train_begin(self, trainer: ObservedTrainer) -> None:
        """Starts."""
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, trainer: ObservedTrainer) -> None:
        """Stops after the last step."""
        if trainer.step == trainer.args.max_steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.began[0]
            self.cpu_seconds = time.process_time() - self.began[1]


def train(
    model: VQModel,
    images: torch.Tensor,
    *,
    commitment_weight: float,
    steps: int = 1500,
    learning_rate: float = 3e-4,
    seed: int = 0,
) -> Clock:
    """Trains the model in place on `images` and returns how long this took."""
    model.config.commitment_weight = commitment_weight
    with tempfile.TemporaryDirectory() as folder:
        args = TokenizerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            train_batch_size=32,
            learning_rate=learning_rate,
            weight_decay=1e-4,
            max_grad_norm=0.0,
            seed=seed,
            logging_steps=0,
            save_steps=0,
            disable_tqdm=True,
            use_cpu=images.device.type == "cpu",
        )
        trainer = Experiment(model, args, images)
        clock = Clock()
        trainer.callbacks.append(clock)
        trainer.train()
        trainer.close()
    return clock


@torch.no_grad()
def evaluate(model: VQModel, images: torch.Tensor, num_codes: int = NUM_CODES) -> dict[str, float]:
    """Measures `mse` (pixels in [0, 1]), `psnr` (of the mean error), `perplexity`, and `usage` in [0, 1]."""
    model.eval()
    squared, counts = 0.0, torch.zeros(num_codes, dtype=torch.double, device=images.device)
    for batch in images.split(128):
        out = model(batch)
        difference = (out.decoded_pixel_values.clamp(-1, 1) - batch) / 2
        squared += difference.double().square().sum().item()
        if out.image_tokens is not None:
            counts += torch.bincount(out.image_tokens.flatten(), minlength=num_codes)
    mse = squared / images.numel()
    frequency = counts / counts.sum().clamp_min(1)
    return {
        "mse": mse,
        "psnr": -10 * float(np.log10(mse)),
        "perplexity": float((-torch.xlogy(frequency, frequency).sum()).exp()),
        "usage": float((counts > 0).double().mean()),
    }


@torch.no_grad()
def kmeans_usage(model: VQModel, fit_images: torch.Tensor, images: torch.Tensor) -> float:
    """Share of the codes that `images` would use if the codes were the k-means centroids of `fit_images`' vectors.

    This is the yardstick for `usage`. K-means++ and Lloyd's iterations on all vectors at once leave no centroid
    without a vector of `fit_images`. So the centroids that `images` do not use show how much the two sets differ.
    """
    model.eval()
    fitted, held_out = (
        torch.cat([model.encode(batch).last_hidden_state.movedim(1, -1).flatten(0, -2) for batch in split.split(128)])
        for split in (fit_images, images)
    )
    torch.manual_seed(0)
    codes = kmeans(fitted, NUM_CODES)
    return len(nearest_code(held_out, codes).unique()) / NUM_CODES
