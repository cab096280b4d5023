"""The page of the app: what is where, and which of its parts call which function."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
import torch

from hf_vq.app.generator_view import MAX_IMAGES, GeneratorView, painted_mask, sampling_of
from hf_vq.app.pictures import cell_at, enlarged, token_picture
from hf_vq.app.tokenizer_view import TokenizerView

MAX_UPLOAD = "20mb"
_FRAME_SECONDS = 0.12
_THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from other servers


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows what a function raises as a sentence on the page."""

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except gr.Error:
            raise
        except (ValueError, OSError, RuntimeError, PIL.Image.DecompressionBombError) as error:
            raise gr.Error(str(error)) from error

    return wrapped


def build(tokenizer: TokenizerView, generator: GeneratorView | None, title: str, dataset: str) -> gr.Blocks:
    """Makes the page.

    Args:
        tokenizer: The tokenizer; of a generator its own.
        generator: The generator, if there is one.
        title: What the page is called: the model's name.
        dataset: The name of the data set in which codes are looked for; empty without one.
    """
    with gr.Blocks(title=f"{title}, hf_vq", analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        with gr.Tab("Tokens"):
            _tokens_tab(tokenizer, dataset)
        if generator is not None:
            with gr.Tab("Generate"):
                _generate_tab(generator)
            with gr.Tab("Inpaint"):
                _inpaint_tab(generator)
    # A model does one thing at a time. Whoever clicks meanwhile waits.
    return page.queue(default_concurrency_limit=1)


def launch(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, **options: Any) -> Any:
    """Serves the page; on this machine alone unless another host is given."""
    return page.launch(
        server_name=host, server_port=port, share=False, max_file_size=MAX_UPLOAD, theme=_THEME, ssr_mode=False,
        **options,
    )  # fmt: skip


def _tokens_tab(view: TokenizerView, dataset: str) -> None:
    original, tokens, cell = gr.State(), gr.State(), gr.State()
    first = gr.State()  # the image's own tokens, to return to
    with gr.Row():
        upload = gr.Image(label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"])
        # The path as it is: what is no image is told by our own reader. A subclass would make gradio write files here.
        upload.preprocess = lambda payload: payload and payload.path  # type: ignore[method-assign]
        grid = gr.Image(show_label=False, format="png", interactive=False, buttons=[], elem_id="tokens")
        slider = gr.ImageSlider(
            label="Original and reconstruction", type="pil", format="png", interactive=False, elem_id="slider"
        )
    with gr.Row():
        about = gr.Textbox(label="Tokens", interactive=False, elem_id="about")
        code = gr.Number(label="Another code for this cell", precision=0, minimum=0, elem_id="code")
        swap = gr.Button("Swap", elem_id="swap")
        back = gr.Button("As it was", elem_id="back")
    nearest = gr.Gallery(
        label=f"Nearest in {dataset}", columns=6, height=220, visible=bool(dataset), elem_id="nearest"
    )
    usage_button = gr.Button("Use of the codebook", visible=bool(dataset), elem_id="usage")
    usage = gr.Image(show_label=False, interactive=False, visible=False, buttons=[], elem_id="histogram")

    def shown(seen: PIL.Image.Image, ids: np.ndarray, place: Any = None) -> tuple[Any, Any]:
        return token_picture(_first_group(ids), place), (enlarged(seen), enlarged(view.decode(ids)))

    def on_image(path: str | None) -> Any:
        empty = (None, None, None, None, None, None, None, "", None)
        if path is None:
            return empty
        try:
            seen, ids = view.tokenize(path)
        except (ValueError, OSError, PIL.Image.DecompressionBombError) as error:
            reason = str(error).replace(path, Path(path).name)  # where the server keeps it is nobody's business
            gr.Warning(f"This file is not an image that can be read: {reason}")
            return empty
        picture, both = shown(seen, ids)
        text = f"{ids.size} tokens of {view.model.config.num_codes:,} codes. Click a cell to see its code."
        return gr.skip(), seen, ids, ids, None, picture, both, text, None

    @told
    def on_click(ids: np.ndarray | None, seen: Any, event: gr.SelectData) -> Any:
        if ids is None:
            raise gr.Error("Upload an image first.")
        codes = _first_group(ids)
        picture = token_picture(codes)
        x, y = event.index
        place = cell_at(x, y, picture.size, codes.shape)
        number = int(codes[place])
        return place, token_picture(codes, place), number, *about_code(number, place)

    def about_code(number: int, place: Any) -> tuple[str, list[Any]]:
        text = f"row {place[0] + 1}, column {place[1] + 1}: code {number}"
        if not dataset:
            return text, []
        near = view.nearest(number)
        images = [(each.image, "this code" if each.is_code else f"distance {each.distance:.2f}") for each in near]
        return f"{text}, used {int(view.uses()[number]):,} times in {dataset}", images

    @told
    def on_swap(seen: Any, ids: np.ndarray | None, place: Any, number: float | None) -> Any:
        if ids is None or place is None or number is None:
            raise gr.Error("Upload an image and click a cell of its tokens first.")
        changed = view.swapped(ids, tuple(place), int(number))
        picture, both = shown(seen, changed, tuple(place))
        return changed, picture, both, *about_code(int(number), place)

    @told
    def on_back(seen: Any, ids: np.ndarray | None) -> Any:
        if ids is None:
            raise gr.Error("Upload an image first.")
        return ids, *shown(seen, ids)

    @told
    def on_usage() -> Any:
        from hf_vq.plots.codebook import usage_histogram

        return gr.update(value=usage_histogram(view.uses()), visible=True)

    once: Any = {"trigger_mode": "once", "concurrency_id": "model"}
    everything = [upload, original, tokens, first, cell, grid, slider, about, nearest]
    upload.change(on_image, upload, everything, concurrency_id="model")
    grid.select(on_click, [tokens, original], [cell, grid, code, about, nearest], **once)
    swap.click(on_swap, [original, tokens, cell, code], [tokens, grid, slider, about, nearest], **once)
    back.click(on_back, [original, first], [tokens, grid, slider], **once)
    usage_button.click(on_usage, None, usage, **once)


def _sampling_inputs(view: GeneratorView) -> list[Any]:
    """Class, seed, sampler, steps, guidance and temperature."""
    config = view.model.config
    most = config.grid_size[0] * config.grid_size[1] * config.num_groups
    guided = bool(config.num_classes and config.class_dropout)
    with gr.Row():
        name = gr.Dropdown(view.classes, value=view.classes[0], label="Class")
        seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
        sampler = gr.Radio(["confidence", "halton"], value="confidence", label="Sampler")
    with gr.Row():
        steps = gr.Slider(1, min(most, 64), value=min(24, most), step=1, label="Steps")
        guidance = gr.Slider(1, 6, value=1.3 if guided else 1, step=0.1, label="Guidance", interactive=guided)
        temperature = gr.Slider(0.1, 1.5, value=0.5, step=0.05, label="Temperature")
    return [name, seed, sampler, steps, guidance, temperature]


def _generate_tab(view: GeneratorView) -> None:
    options = _sampling_inputs(view)
    count = gr.Slider(1, MAX_IMAGES, value=9, step=1, label="Images")
    button = gr.Button("Generate", variant="primary", elem_id="generate")
    canvas = gr.Image(label="Images, step by step", format="png", interactive=False, height=540, elem_id="canvas")

    def on_generate(
        name: str, seed: float, sampler: str, steps: int, guidance: float, temperature: float, images: int
    ) -> Iterator[PIL.Image.Image]:
        try:
            sampling = sampling_of(sampler, steps, guidance, temperature)
            for frame in view.draw(name, int(images), int(seed), sampling):
                yield frame
                time.sleep(_FRAME_SECONDS)
        except (ValueError, RuntimeError) as error:
            raise gr.Error(str(error)) from error

    button.click(on_generate, [*options, count], canvas, trigger_mode="once", concurrency_id="model")


def _inpaint_tab(view: GeneratorView) -> None:
    with gr.Row():
        editor = gr.ImageEditor(
            label="Upload an image, paint what is to be made anew", type="pil", image_mode="RGBA",
            sources=["upload", "clipboard"], transforms=[], layers=False, height=480, elem_id="editor",
            brush=gr.Brush(colors=["#ff00aa"], color_mode="fixed"),
        )  # fmt: skip
        result = gr.Image(label="Made anew", format="png", interactive=False, height=480, elem_id="inpainted")
    options = _sampling_inputs(view)
    keep = gr.Checkbox(value=True, label="The rest comes back untouched")
    button = gr.Button("Inpaint", variant="primary", elem_id="inpaint")

    @told
    def on_inpaint(
        drawn: dict[str, Any] | None, name: str, seed: float, sampler: str, steps: int, guidance: float,
        temperature: float, keep_pixels: bool,
    ) -> PIL.Image.Image:  # fmt: skip
        image = (drawn or {}).get("background")
        if drawn is None or image is None or not torch.any(torch.from_numpy(np.array(image)) != 0):
            raise gr.Error("Upload an image first.")
        mask = painted_mask(drawn["layers"], image.size)
        if mask.getbbox() is None:
            raise gr.Error("Paint over what is to be made anew first.")
        sampling = sampling_of(sampler, steps, guidance, temperature)
        return view.inpaint(image, mask, name, int(seed), sampling, keep_pixels)

    button.click(on_inpaint, [editor, *options, keep], result, trigger_mode="once", concurrency_id="model")


def _first_group(ids: np.ndarray) -> np.ndarray:
    return ids[..., 0] if ids.ndim == 3 else ids
