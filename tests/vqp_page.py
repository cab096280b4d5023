"""The page for those who come from vector-quantize-pytorch, and how its cases make both layers."""

from typing import Any

import pytest
import torch

from hf_vq.convert import convert_vector_quantize_pytorch

from .pages import Page

vqp = pytest.importorskip("vector_quantize_pytorch")
PAGE = Page("coming-from-vector-quantize-pytorch.md")
LEARNED: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}


def converted(class_name: str = "VectorQuantize", settings: Any = None, **arguments: Any) -> tuple[Any, Any]:
    """Their layer, after two batches, and ours."""
    torch.manual_seed(0)
    if class_name != "FSQ":
        arguments = {"dim": 8, "codebook_size": 16} | arguments
    theirs = getattr(vqp, class_name)(**arguments)
    is_image = arguments.get("accept_image_fmap")
    for _ in range(2 if class_name != "FSQ" else 0):
        theirs(torch.randn(2, 8, 5, 5) if is_image else torch.randn(2, 25, 8))
    axis = -1 if class_name == "FSQ" else None
    ours = convert_vector_quantize_pytorch(class_name, theirs.state_dict(), axis=axis, settings=settings, **arguments)
    return theirs.eval(), ours.layer


def assert_same_ids(theirs: Any, ours: Any, z: torch.Tensor) -> None:
    index = theirs(z)[1]
    q = ours(z)[1].q
    assert torch.equal(q.squeeze(-1) if q.ndim > index.ndim else q, index)
