"""Show tokens, generate and inpaint in a browser.

    hf-vq app
    hf-vq app --model user/maskgit-emoji --dataset path/to/images

The page shows an image as tokens beside its reconstruction; a click on a cell tells of its code and swaps it. With a
generator it makes images of a class step by step, and parts of an image anew. It needs `pip install 'hf_vq[app]'`.
Only this machine can open the page, unless `--host` says otherwise. `--push user/space` publishes it as a Space.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hf_vq.app.generator_view import GeneratorView
from hf_vq.app.space import write_space
from hf_vq.app.tokenizer_view import TokenizerView
from hf_vq.commands.parsing import parse_command_line
from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.data.sources import SAMPLE_DATASET, load_images
from hf_vq.hub.loading import load_model
from hf_vq.hub.repository import publish_folder
from hf_vq.kinds import kind_of
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.utils.extras import require
from hf_vq.utils.text import public_name


@dataclass
class AppArguments:
    """What the page shows, and who can open it."""

    model: str = field(
        default="emoji-generator",
        metadata={"help": "Folder, Hub id or sample of a generator or a tokenizer."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the repository."})
    dataset: str | None = field(
        default=SAMPLE_DATASET, metadata={"help": "Images in which codes are looked for, or none."}
    )
    split: str = field(default="train", metadata={"help": "Split of these images."})
    max_images: int = field(default=500, metadata={"help": "So many of these images are looked at, evenly spaced."})
    push: str | None = field(
        default=None, metadata={"help": "Publish the page as this Space, user/name, instead of showing it."}
    )
    private: bool = field(default=False, metadata={"help": "Make a new Space private."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at; 0.0.0.0 lets others in."})
    port: int | None = field(default=None, metadata={"help": "Port; by default a free one from 7860 on."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Where the model runs."}
    )

    def __post_init__(self) -> None:
        if self.max_images < 1:
            raise ValueError(f"--max_images must be at least 1, got {self.max_images}.")


@command
def main(words: list[str]) -> None:
    """Parses the command line, loads the model, and serves the page until Ctrl-C."""
    with errors_in_a_line():
        options, _ = parse_command_line(AppArguments, None, words, __doc__, prog="hf-vq app")
        require("app", "gradio")
        views = load_views(options)
        if options.push is not None:
            print(push(options, views))
            return
        from hf_vq.app.interface import build, launch

        name = public_name(options.model) or options.model
        launch(build(*views, name, public_name(options.dataset) or ""), options.host, options.port)


def load_views(options: AppArguments) -> tuple[TokenizerView, GeneratorView | None]:
    """Loads the model and lists the images.

    Raises:
        ValueError: The model is neither a generator nor a tokenizer, or the data set has no such split.
        FileNotFoundError: There is no such model, or no images.
        HubError: The Hub does not give the model.
    """
    model, processor = load_model(options.model, options.revision)
    noun = kind_of(model).noun
    if noun not in ("generator", "tokenizer"):
        raise ValueError(f"'{options.model}' is neither a generator nor a tokenizer but a {type(model).__name__}")
    model.to(options.device)
    rows: Any = []
    if options.dataset is not None:
        rows = load_images(options.dataset, options.split)
        count = min(len(rows), options.max_images)
        rows = rows.select([number * len(rows) // count for number in range(count)])
    if noun == "tokenizer":
        return TokenizerView(model, processor, rows), None
    tokenizer = TokenizerView(model.tokenizer, VQImageProcessor.for_config(model.config), rows)
    return tokenizer, GeneratorView(model)


def push(options: AppArguments, views: tuple[TokenizerView, GeneratorView | None]) -> str:
    """Publishes the page as a Space, in one commit, and returns the commit's address."""
    assert options.push is not None
    model = (views[1] or views[0]).model
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_space(
            folder,
            options.model,
            revision=getattr(model.config, "_commit_hash", None) or options.revision,
            dataset=options.dataset,
            split=options.split,
            has_generator=views[1] is not None,
            gradio_version=metadata.version("gradio"),
        )
        message = "Upload the page of hf_vq's app"
        private = options.private or None
        return str(publish_folder(folder, options.push, repo_type="space", private=private, commit_message=message))


if __name__ == "__main__":
    main()
