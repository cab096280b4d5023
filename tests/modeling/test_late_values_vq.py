"""What the host knows of a codebook without asking the device, and that it asks where it has to."""

from __future__ import annotations

import copy
import io

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vq import VectorQuant
from hf_vq.modeling.late_values_vq import LateValues, Unchanged


class Questions(TorchDispatchMode):
    """Counts the operations with which a host waits for a value of a device."""

    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero", "aten._unique2")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Runs and counts an operation."""
        if str(function).startswith(self.WAITS):
            self.asked.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_steady_forward_asks_nothing() -> None:
    """Neither whether the codes are initialized nor whether one is dead; where one is due, it is replaced as ever."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 8, kmeans_init=True, replace_freq=4, alternating_steps=1).train()
    quiet = []
    for step in range(12):
        with Questions() as questions:
            replaced = layer(torch.randn(8 if step == 0 else 3, 4))[1].replaced  # 3 vectors leave most codes unused
        # The second forward asks once more whether the first one has initialized the codes.
        assert bool(questions.asked) == (replaced is not None or step == 1)
        quiet.append(not questions.asked)
    assert not all(quiet[2:]) and any(quiet[2:])


def test_what_was_written_to_from_outside_is_seen() -> None:
    """A loaded state, a cleared flag and turned clocks count in the next forward; so in copies."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 8, kmeans_init=True, replace_freq=100).train()
    state = copy.deepcopy(layer.state_dict())
    batch = torch.randn(32, 4)
    assert layer(batch)[1].replaced is not None
    assert layer(batch)[1].replaced is None
    layer.codebook.unused_steps[3] = 100
    assert layer(batch)[1].replaced.nonzero().tolist() == [[3]]
    layer.codebook.initialized.fill_(False)
    assert layer(batch)[1].replaced.all()
    layer.load_state_dict(state)
    assert layer(batch)[1].replaced.all()
    twin = copy.deepcopy(layer)
    twin.codebook.unused_steps[2] = 100
    assert twin(batch)[1].replaced.nonzero().tolist() == [[2]]
    assert layer(batch)[1].replaced is None


def test_late_values_travel_in_copies_and_files() -> None:
    """What is under way is read before it is copied."""
    values = LateValues(torch.tensor([3, 1]))
    file = io.BytesIO()
    torch.save(values, file)
    file.seek(0)
    assert copy.deepcopy(values).read() == torch.load(file, weights_only=False).read() == [3, 1]


def test_inference_tensors_are_never_known() -> None:
    """They have no record of what was written to them."""
    with torch.inference_mode():
        tensor = torch.zeros(2)
    assert not Unchanged(tensor).holds(tensor)
    ordinary = torch.zeros(2)
    before = Unchanged(ordinary)
    assert before.holds(ordinary) and not before.holds(ordinary.clone())
    ordinary.add_(1)
    assert not before.holds(ordinary)
