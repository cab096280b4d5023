"""The app as a Space of the Hub: everything that it needs, pinned, in one folder."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from pathlib import Path

from huggingface_hub import SpaceCardData
from huggingface_hub.utils import yaml_dump

from hf_vq.cards.files import CARD_FILE
from hf_vq.cards.merging import metadata_record
from hf_vq.data.sources import SAMPLE_DATASET
from hf_vq.hub.samples import SAMPLES, is_sample, local_model
from hf_vq.modeling.version_vq import __version__
from hf_vq.utils.text import is_hub_id, public_name

PACKAGE = Path(__file__).parents[1]
MODEL_FOLDER = "model"  # of a model that is not on the Hub
# What the app imports. Gradio is not among them: a Space installs the version that its card names.
REQUIREMENTS = (
    "accelerate", "datasets", "huggingface_hub", "matplotlib", "numpy", "pillow", "pyyaml", "safetensors", "torch",
    "torchdata", "torchmetrics", "tqdm", "transformers",
)  # fmt: skip
_APP = '''"""The page of hf_vq's app; `hf-vq app --push` wrote this file."""

from hf_vq.commands.app import main

main({words!r})
'''
_CARD = """---
{metadata}---

# {title}

<!-- hf_vq: begin {record} -->
Tokens of images, beside what is reconstructed of them{generates}. The model is {model}.

`hf-vq app --push` of hf_vq {version} wrote this Space. `hf_vq/` is the package, and `requirements.txt` has the
versions of its dependencies with which it was tried.
<!-- hf_vq: end -->
"""


def write_space(
    folder: Path,
    model: str,
    *,
    revision: str | None,
    dataset: str | None,
    split: str,
    has_generator: bool,
    gradio_version: str,
) -> None:
    """Writes all files of a Space.

    Args:
        folder: Where to; it is made.
        model: A folder or the name of a sample, which goes along, or a Hub id, which is fetched by the Space.
        revision: The commit of a Hub id.
        dataset: The shipped sample or a Hub id; images on this machine stay here.
        split: Of the data set.
        has_generator: Whether the model generates.
        gradio_version: What the Space installs.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    goes_along = local_model(model)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=_left_out(model, dataset))
    name, words = public_name(model) or model, ["--host", "0.0.0.0", "--port", "7860"]
    if is_sample(model):
        words += ["--model", model]
    elif goes_along is not None:
        shutil.copytree(goes_along, folder / MODEL_FOLDER, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        words += ["--model", MODEL_FOLDER]
    else:
        words += ["--model", model, *(["--revision", revision] if revision else [])]
    kept = dataset if dataset == SAMPLE_DATASET or is_hub_id(dataset) else None
    words += ["--dataset", kept or "none", "--split", split]
    (folder / "app.py").write_text(_APP.format(words=words), encoding="utf-8")
    pins = [f"{package}=={metadata.version(package).partition('+')[0]}" for package in REQUIREMENTS]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    on_hub = goes_along is None
    data = SpaceCardData(
        title=name.rpartition("/")[2],
        sdk="gradio",
        sdk_version=gradio_version,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        models=[model] if on_hub else None,
        datasets=[kept] if kept and is_hub_id(kept) else None,
        tags=["hf_vq"],
    )
    card = _CARD.format(
        metadata=yaml_dump(data.to_dict(), sort_keys=False),
        title=data.title,
        record=metadata_record(data),
        generates=", images of a class, and parts of images made anew" * has_generator,
        model=f"[{name}](https://huggingface.co/{model})" if on_hub else f"`{name}`, which is part of the Space",
        version=__version__,
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _left_out(model: str, dataset: str | None):  # type: ignore[no-untyped-def]
    """Which files of the package do not go along: other models, images that nobody looks at, compiled files."""
    others = {path.name for path in SAMPLES.iterdir() if not (is_sample(model) and path.name == model)}

    def ignore(folder: str, names: list[str]) -> set[str]:
        left = {name for name in names if name == "__pycache__"}
        if Path(folder) == SAMPLES:
            left |= others & set(names)
        if Path(folder) == PACKAGE / "data" and dataset != SAMPLE_DATASET:
            left.add("noto_emoji_32")
        return left

    return ignore
