"""The small trained models that come with the package, found by name."""

from __future__ import annotations

from pathlib import Path

SAMPLES = Path(__file__).parents[1] / "samples"


def sample_names() -> list[str]:
    """The names that `sample_model` knows."""
    return sorted(path.parent.name for path in SAMPLES.glob("*/config.json"))


def sample_model(name: str) -> str:
    """The folder of a small trained model that comes with the package, for any `from_pretrained`.

        AutoModel.from_pretrained(hf_vq.sample_model("emoji-tokenizer"))

    Its weights are stored as float16 and load as float32. The folder's README.md is its card.

    Args:
        name: `"emoji-tokenizer"`, a `VQModel` for images of 32 px, or `"emoji-generator"`, a `MaskGitModel` that
            carries this tokenizer.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in sample_names():
        raise ValueError(f"There is no sample model {name!r}. Choose among {', '.join(map(repr, sample_names()))}.")
    return str(SAMPLES / name)


def is_sample(name: str | Path) -> bool:
    """Whether a name is a sample's and not that of a folder, which wins."""
    return not Path(name).expanduser().is_dir() and str(name) in sample_names()


def local_model(name: str | Path) -> Path | None:
    """The folder that a model's name stands for on this machine; None if it can only be a Hub id.

    Args:
        name: The path of a folder, the name of a sample, or anything else.
    """
    if is_sample(name):
        return SAMPLES / name
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None
