"""What the app asks a tokenizer: tokens of an image, pixels of tokens, and where a data set has a code."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from hf_vq.app.pictures import Cell, enlarged, frame
from hf_vq.data.reading import decode_image
from hf_vq.modeling.image_processing_vq import VQImageProcessor

_BATCH = 32
_SHOWN = 160  # pixels of an image of the data set


class Near(NamedTuple):
    """An image of the data set with the cell that is nearest to a code.

    Attributes:
        image: The image, enlarged, with a frame around the cell.
        distance: Of the cell's vector to the code.
        is_code: Whether the cell has this code.
    """

    image: PIL.Image.Image
    distance: float
    is_code: bool


class TokenizerView:
    """A tokenizer, and a data set in which to look for its codes.

    Args:
        model: A `VQModel` in eval mode.
        processor: Its image processor.
        rows: Rows of the data set, undecoded; they are read when a code is looked for.
    """

    def __init__(self, model: Any, processor: VQImageProcessor, rows: Sequence[Any] = ()) -> None:
        self.model, self.processor, self.rows = model, processor, rows
        self._lock = threading.Lock()
        self._vectors: torch.Tensor | None = None
        self._tokens: torch.Tensor | None = None

    @torch.no_grad()
    def tokenize(self, image: PIL.Image.Image | str) -> tuple[PIL.Image.Image, np.ndarray]:
        """An image or its file as the model sees it, and its tokens: int64 (h, w), or (h, w, groups).

        Raises:
            OSError, ValueError: It is not an image that can be read.
        """
        opened: Any = self.processor.fetch_images(image)
        pixels = self.processor([opened], return_tensors="pt").pixel_values.to(self.model.device)
        tokens = self.model.encode(pixels).image_tokens
        seen: Any = self.processor.postprocess(pixels)
        return seen[0], tokens[0].cpu().numpy()

    @torch.no_grad()
    def decode(self, tokens: np.ndarray) -> PIL.Image.Image:
        """The image of tokens (h, w) or (h, w, groups)."""
        pixels = self.model.decode(torch.from_numpy(tokens)[None].to(self.model.device)).decoded_pixel_values
        images: Any = self.processor.postprocess(pixels)
        return images[0]

    def swapped(self, tokens: np.ndarray, cell: Cell, code: int) -> np.ndarray:
        """Tokens with another code in a cell, of the first group where there are several.

        Raises:
            ValueError: There is no such code.
        """
        number = self.model.config.num_codes
        if not 0 <= code < number:
            raise ValueError(f"There is no code {code}: this tokenizer has the codes 0 to {number - 1:,}.")
        changed = tokens.copy()
        changed[(*cell, 0) if tokens.ndim == 3 else cell] = code
        return changed

    def nearest(self, code: int, count: int = 6) -> list[Near]:
        """The images of the data set whose cells come nearest to a code, one cell of each, the nearest first."""
        if not len(self.rows):
            return []
        vectors, tokens = self._look()
        book = self.model.quantize.get_codebook().detach().float().cpu()
        width = book.shape[-1]
        of_code = book.reshape(-1, width)[code]
        # (images, h, w): the codes of the first group are compared with the vectors' first part
        distances = (vectors[:, :width] - of_code[:, None, None]).square().sum(1).sqrt()
        best, cells = distances.flatten(1).min(1)
        found = []
        for number in best.argsort()[:count].tolist():
            cell = divmod(int(cells[number]), distances.shape[2])
            seen = enlarged(self._seen(number), _SHOWN)
            frame(seen, cell, (distances.shape[1], distances.shape[2]))
            first = tokens[number][cell].reshape(-1)[0]
            found.append(Near(seen, float(best[number]), int(first) == code))
        return found

    def uses(self) -> torch.Tensor:
        """How often the data set has each code, int64 (num_codes,)."""
        number = self.model.config.num_codes
        if not len(self.rows):
            return torch.zeros(number, dtype=torch.int64)
        return self._look()[1].flatten().bincount(minlength=number)

    def _look(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors and tokens of the whole data set, made once."""
        with self._lock:
            if self._vectors is None or self._tokens is None:
                vectors, tokens = [], []
                for start in range(0, len(self.rows), _BATCH):
                    out = self._encode(range(start, min(start + _BATCH, len(self.rows))))
                    vectors.append(self.model.quantize.unquantized(out.last_hidden_state).float().cpu())
                    tokens.append(out.image_tokens.cpu())
                self._vectors, self._tokens = torch.cat(vectors), torch.cat(tokens)
            return self._vectors, self._tokens

    @torch.no_grad()
    def _encode(self, numbers: Iterable[int]) -> Any:
        images = [decode_image(self.rows[number], self.processor.num_channels) for number in numbers]
        pixels = self.processor(images, return_tensors="pt").pixel_values
        return self.model.encode(pixels.to(self.model.device))

    def _seen(self, number: int) -> PIL.Image.Image:
        image = decode_image(self.rows[number], self.processor.num_channels)
        seen: Any = self.processor.postprocess(self.processor([image], return_tensors="pt").pixel_values)
        return seen[0].convert("RGB")
