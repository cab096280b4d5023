"""What a training run can be told: one dataclass per trainer, readable by `HfArgumentParser`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hf_vq.modeling.options_maskgit import MaskGitSampling
from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.utils.fields import RepeatedFields
from hf_vq.utils.text import public_name


@dataclass
class ImageTrainingArguments(BaseTrainingArguments):
    """Settings of runs that read images."""

    # Images
    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id, folder of images, parquet or tar file(s), or noto-emoji-32, the sample."},
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the images (found if not given)."})
    strict: bool = field(
        default=False, metadata={"help": "Stop at an image that cannot be read, instead of skipping and counting it."}
    )
    check_images_up_to: int = field(
        default=20_000,
        metadata={"help": "Data sets up to this size are decoded once at the start, to list unreadable images."},
    )
    fast_jpegs: bool = field(
        default=False,
        metadata={
            "help": "Decode large JPEGs to train on at a reduced size: faster, a level or two beside the truth."
        },
    )
    random_flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})
    random_crop: bool = field(default=False, metadata={"help": "Crop training images at random, not in the center."})

    # The codebook's record
    monitor_steps: int = field(
        default=0, metadata={"help": "Steps between two snapshots of the codebook in output_dir/codebook (0 = none)."}
    )
    monitor_images: int = field(default=64, metadata={"help": "Held-out images of which the snapshots are."})

    free_on_resume: ClassVar[frozenset[str]] = BaseTrainingArguments.free_on_resume | {
        "check_images_up_to", "monitor_steps",
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("check_images_up_to", "monitor_steps"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("monitor_images", 1 <= self.monitor_images <= 2048, "from 1 to 2048")

    def recipe(self) -> dict[str, Any]:
        """The rows of every run, and what was done to the images."""
        return super().recipe() | {
            "random flip": self.random_flip or None,
            "random crop": self.random_crop or None,
            "large JPEGs": "decoded at a reduced size" if self.fast_jpegs else None,
        }


@dataclass
class TokenizerTrainingArguments(ImageTrainingArguments):
    """Settings of [`TokenizerTrainer`].

    What belongs to the model (codes, quantizer options, commitment weight, reconstruction loss, ...) is not here
    but in `VQConfig`.
    """

    # Optional losses; the reconstruction loss and its commitment weight are the model's
    perceptual_weight: float = field(
        default=0.0, metadata={"help": "Weight of the perceptual loss (0 = off; downloads a VGG16, 575 MB, once)."}
    )
    adversarial_weight: float = field(
        default=0.0, metadata={"help": "Weight of the patch discriminator's loss (0 = off)."}
    )
    adversarial_start: int = field(default=0, metadata={"help": "First step with the adversarial loss."})
    adaptive_adversarial_weight: bool = field(
        default=True, metadata={"help": "Scale the adversarial loss by the ratio of gradients at the last layer."}
    )
    discriminator_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the discriminator (learning_rate if not given)."}
    )
    discriminator_channels: int = field(default=64, metadata={"help": "Width of the discriminator's first layer."})
    discriminator_layers: int = field(default=3, metadata={"help": "Layers of the discriminator."})
    discriminator_loss: str = field(
        default="hinge", metadata={"help": "Loss of the discriminator.", "choices": ["hinge", "nonsaturating"]}
    )

    # Pictures
    num_grid_images: int = field(default=8, metadata={"help": "Images in the picture of reconstructions."})

    free_on_resume: ClassVar[frozenset[str]] = ImageTrainingArguments.free_on_resume | {"num_grid_images"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("perceptual_weight", "adversarial_weight", "adversarial_start"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("discriminator_channels", "discriminator_layers", "num_grid_images"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require(
            "discriminator_loss", self.discriminator_loss in ("hinge", "nonsaturating"), "hinge or nonsaturating"
        )

    def recipe(self) -> dict[str, Any]:
        """The rows of a run on images, and the optional losses."""
        weight = self.adversarial_weight
        return super().recipe() | {
            "perceptual weight": self.perceptual_weight or None,
            "adversarial weight": f"{weight:g}, from step {self.adversarial_start}" if weight else None,
        }


@dataclass
class ClassifierTrainingArguments(ImageTrainingArguments):
    """Settings of [`ClassifierTrainer`].

    What belongs to the model (backbone, quantized layer, quantizer options, commitment weight, ...) is not here but in
    `VQImageClassificationConfig`; the classes are those of the images.
    """


SAMPLES = RepeatedFields(
    MaskGitSampling,
    prefix="sample_",
    changes={
        "num_steps": {"name": "sample_steps"},
        "guidance_scale": {
            "default": 3.0,
            "help": "Guidance of the samples (1 = off); models without classes or class dropout have none.",
        },
    },
)
"""The sampling options as fields of `GeneratorTrainingArguments`, for the samples that a run draws."""


@dataclass
@SAMPLES.add_to
class GeneratorTrainingArguments(BaseTrainingArguments):
    """Settings of [`GeneratorTrainer`].

    What belongs to the model (sizes, mask schedule, label smoothing, class dropout, ...) is not here but in
    `MaskGitConfig`. The fields `sample_...` are the options of `MaskGitSampling`, for the samples of the run.
    """

    # Tokens
    tokens: str | None = field(default=None, metadata={"help": "Folder or Hub id of a token data set."})
    tokens_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub token set."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the tokenizer that made them."})
    tokenizer_revision: str | None = field(
        default=None, metadata={"help": "Commit, branch or tag of a Hub tokenizer."}
    )
    allow_unverified: bool = field(
        default=False,
        metadata={"help": "Take files of the cache that cannot be verified, since the Hub cannot be asked."},
    )

    # Samples
    num_sample_images: int = field(default=32, metadata={"help": "Images in the picture of samples."})
    num_distance_images: int = field(
        default=0,
        metadata={"help": "Images generated in each evaluation to compare with held-out ones (0 = off)."},
    )
    free_on_resume: ClassVar[frozenset[str]] = BaseTrainingArguments.free_on_resume | {
        "allow_unverified", "num_sample_images", "num_distance_images", *SAMPLES.names.values(),
    }  # fmt: skip

    if TYPE_CHECKING:  # type checkers do not see the fields of SAMPLES

        def __init__(self, output_dir: str, **fields: Any) -> None: ...

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_sample_images", self.num_sample_images >= 1, "at least 1")
        self._require(
            "num_distance_images",
            self.num_distance_images == 0 or self.num_distance_images >= 2,
            "0, or at least 2 for a covariance",
        )
        self.sampling()

    def recipe(self) -> dict[str, Any]:
        """The rows of every run, and the tokenizer."""
        return super().recipe() | {"tokenizer": public_name(self.tokenizer)}

    def sampling(self) -> MaskGitSampling:
        """How the samples are drawn.

        Raises:
            ValueError: For a wrong value.
        """
        return SAMPLES.read(self)
