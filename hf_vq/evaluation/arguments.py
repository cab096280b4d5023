"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vq.data.held_out import HELD_OUT
from hf_vq.hub.samples import is_sample
from hf_vq.metrics.features import FEATURES, SHRUNK_PIXELS
from hf_vq.metrics.generation import SAMPLE_SIZE
from hf_vq.modeling.options_maskgit import MaskGitSampling
from hf_vq.utils.fields import RepeatedFields

SAMPLING = RepeatedFields(MaskGitSampling)
"""The sampling options as fields of `EvaluationArguments`, for generators."""


@dataclass
@SAMPLING.add_to
class EvaluationArguments:
    """What to measure, on what, and how; the help of each field is its documentation.

    The options of `MaskGitSampling` are fields, too.
    """

    dataset: str = field(
        metadata={"help": "Hub id, folder of images, parquet or tar file(s), or noto-emoji-32, the sample."},
    )
    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a tokenizer or a generator; user/name@revision, too."}
    )
    compare: list[str] = field(
        default_factory=list, metadata={"help": "Several of them, for one table; all of one kind."}
    )
    allow_unverified: bool = field(
        default=False,
        metadata={"help": "Take files of the cache that cannot be verified, since the Hub cannot be asked."},
    )

    # Images
    split: str = field(
        default="test",
        metadata={"help": "Split of the data set, or held-out: the images that the models' run held out of it."},
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the images (found if not given)."})
    streaming: bool = field(default=False, metadata={"help": "Read the data set as a stream, without storing it."})
    strict: bool = field(
        default=False, metadata={"help": "Stop at an image that cannot be read, instead of skipping and naming it."}
    )
    max_images: int | None = field(default=None, metadata={"help": "Only so many images, the first ones."})
    image_size: int | None = field(
        default=None, metadata={"help": "Measure tokenizers at this size instead of that of their image processor."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images per process and forward pass."})
    num_threads: int = field(default=4, metadata={"help": "Threads of each process that read images."})

    # Features
    features: str = field(
        default=SHRUNK_PIXELS,
        metadata={
            "help": "8x8_pixels (needs nothing), efficientnet-lite0 (sees detail, but is no FID; the extra "
            "'efficientnet') or inception (FID, KID, IS; the extra 'inception')."
        },
    )
    inception_weights: str | None = field(
        default=None, metadata={"help": "File of Inception's weights (downloaded if not given)."}
    )
    lpips: bool = field(default=False, metadata={"help": "Measure LPIPS of tokenizers, too (the extra 'lpips')."})
    sample_size: int = field(
        default=SAMPLE_SIZE, metadata={"help": "Images of each set for the kernel distance, precision and recall."}
    )

    # Generators
    num_samples: int | None = field(
        default=None, metadata={"help": "Images to generate (as many as there are reference images if not given)."}
    )
    seed: int = field(default=0, metadata={"help": "Image i is drawn with seed + i; chooses the kept features, too."})

    # Results
    output_dir: str = field(default="evaluation", metadata={"help": "Folder for table, JSON and picture."})
    update_cards: bool = field(
        default=False, metadata={"help": "Write the numbers into the card of each repository, or folder."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU although an accelerator is there."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bar."})

    if TYPE_CHECKING:  # type checkers do not see the fields of SAMPLING

        def __init__(self, dataset: str, **fields: Any) -> None: ...

    def __post_init__(self) -> None:
        if (self.model is None) == (not self.compare):
            raise ValueError("give either model, or compare with several models.")
        twice = sorted({name for name in self.compare if self.compare.count(name) > 1})
        if twice:
            raise ValueError(f"compare names {', '.join(twice)} twice.")
        for name, least in (
            ("batch_size", 1),
            ("num_threads", 1),
            ("max_images", 1),
            ("image_size", 1),
            ("sample_size", 2),
            ("num_samples", 2),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if self.split == HELD_OUT and self.streaming:
            raise ValueError("the split held-out is found by the rows' numbers: leave streaming out.")
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}.")
        if self.update_cards and any(split_revision(name)[1] for name in self.names):
            raise ValueError("update_cards writes to the branch main: leave the revision after '@' out.")
        if self.update_cards and any(map(is_sample, self.names)):
            raise ValueError(
                "update_cards writes into folders and repositories, not into the models that come with the package. "
                "Copy the folder that hf_vq.sample_model gives, and name the copy."
            )
        self.sampling()

    def sampling(self) -> MaskGitSampling:
        """How generators sample.

        Raises:
            ValueError: For a wrong value.
        """
        return SAMPLING.read(self)

    @property
    def names(self) -> list[str]:
        """The models."""
        return self.compare or [str(self.model)]


def split_revision(name: str) -> tuple[str, str | None]:
    """A Hub id and the revision after its "@"; folders are taken as they are."""
    if "@" not in name or Path(name).expanduser().exists():
        return name, None
    repo_id, _, revision = name.rpartition("@")
    return repo_id, revision
