"""Files of weights as people have them are read, and nothing that they hold is run."""

from __future__ import annotations

import builtins
import copyreg
import json
import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_vq.convert.checkpoints import convert_checkpoint
from hf_vq.convert.reading import read_weights

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))
COMPARING = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comparing.py"))))


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A small tokenizer of taming-transformers."""
    return COMPARING.randomize(REFERENCES.Taming())


# --- objects -------------------------------------------------------------------------------------------------------


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Classes as checkpoints of PyTorch Lightning hold them, in modules that are gone when the file is read."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    classes = {}
    for each, bases in (("ModelCheckpoint", ()), ("AttributeDict", (dict,)), ("Names", (list,))):
        classes[each] = type(each, bases, {"__module__": name})
        setattr(sys.modules[name], each, classes[each])
    yield SimpleNamespace(**classes)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_lightnings_checkpoints(
    new_format: bool, theirs: Any, lightning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks, hyperparameters and scores beside the weights are left out by name; both formats of torch."""
    callback, settings, names = lightning.ModelCheckpoint(), lightning.AttributeDict(lr=1e-4), lightning.Names(["a"])
    callback.best_model_path, callback.monitor = "last.ckpt", {"mode": min}
    content = {
        "epoch": 3,
        "callbacks": {lightning.ModelCheckpoint: {"best": callback}},
        "hyper_parameters": settings,
        "names": names,
        "folder": Path("logs"),
        "state_dict": theirs.state_dict(),
    }
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=new_format)
    monkeypatch.delitem(sys.modules, lightning.ModelCheckpoint.__module__)

    conversion = convert_checkpoint(tmp_path / "last.ckpt")

    assert "'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint'" in conversion.notes[0]
    assert "without making them" in conversion.notes[0]
    COMPARING.assert_same(conversion.model, theirs)


CALLS: dict[str, Callable[[Path], Any]] = {
    "shell": lambda marker: Call(os.system, f"touch {marker}"),
    "process": lambda marker: Call(subprocess.check_call, ["touch", str(marker)]),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Call(builtins.open, str(marker), "w"),
    "import": lambda marker: Call(__import__, "antigravity"),
    "load": lambda marker: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {marker}"))),
    "torch": lambda marker: Call(torch.save, {}, str(marker)),
    "map": lambda marker: Call(list, map(os.system, [f"touch {marker}"])),
    "reconstruct": lambda marker: Call(copyreg._reconstructor, Call, object, None),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", CALLS)
def test_no_code_of_a_file_runs(kind: str, new_format: bool, tmp_path: Path) -> None:
    """Functions that a file calls, in whatever way, are not called; its tensors are read."""
    marker = tmp_path / "ran"
    content = {"callback": CALLS[kind](marker), "model": {"a": torch.ones(3)}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    marker.unlink(missing_ok=True)
    before = set(sys.modules)

    weights, notes = read_weights(tmp_path / "a.pt")

    assert not marker.exists() and "antigravity" not in set(sys.modules) - before
    assert list(weights) == ["a"] and torch.equal(weights["a"], torch.ones(3))
    assert len(notes) == 1


def test_a_file_that_would_run_does_run_elsewhere(tmp_path: Path) -> None:
    """The files of the test above are no blanks."""
    marker = tmp_path / "ran"
    torch.save(CALLS["shell"](marker), tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert marker.exists()


def test_a_pickle_cannot_change_what_makes_tensors(tmp_path: Path) -> None:
    """The state of an object is set on a copy."""
    rebuild = torch._utils._rebuild_tensor_v2
    state = pickle.dumps((None, {"__defaults__": (1, 2, 3), "mark": 1}), 2)[2:-1]
    data = (
        b"\x80\x02}(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
        + state
        + b"bX\x01\x00\x00\x00bcos\nsystem\nu."
    )
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")

    assert read_weights(tmp_path / "a.pt")[0] == {}
    assert not hasattr(rebuild, "mark") and rebuild.__defaults__ != (1, 2, 3)


class Buffered(torch.nn.Module):
    """A module with a part, a number and a buffer that its state dict lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.number = torch.nn.Conv2d(2, 3, 1).to(torch.bfloat16), 3
        self.register_buffer("levels", torch.tensor([8, 5]), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.part(pixels) * self.levels.sum()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["traced.jit", "scripted.pt"])
def test_weights_of_programs_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names, in their precision, without the compiler."""
    module = Buffered()
    example = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)
    program: Any = torch.jit.trace(module, example) if name == "traced.jit" else torch.jit.script(module)
    torch.jit.save(program, tmp_path / name)
    monkeypatch.delattr(torch.jit, "load")
    monkeypatch.delattr(torch._C, "import_ir_module")

    weights, notes = read_weights(tmp_path / name)

    expected = dict(module.state_dict()) | {"levels": torch.tensor([8, 5])}
    assert weights.keys() == expected.keys() and "which was not run" in notes[0]
    for key, value in expected.items():
        assert torch.equal(weights[key], value) and weights[key].dtype == value.dtype, key


@pytest.mark.parametrize("function", [b"os\nsystem\n", b"builtins\nexec\n", b"torch._utils\n_rebuild_tensor\n"])
def test_no_code_of_a_program_runs(function: bytes, tmp_path: Path) -> None:
    """A call in its attributes is not made."""
    marker = tmp_path / "ran"
    argument = f"touch {marker}".encode()
    call = b"c" + function + b"(X" + len(argument).to_bytes(4, "little") + argument + b"tR"
    state = b"}(X\x01\x00\x00\x00a" + call + b"u"
    with zipfile.ZipFile(tmp_path / "a.jit", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02c__torch__\nA\n)\x81" + state + b"b.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")

    if b"rebuild" in function:
        with pytest.raises(ValueError, match="cannot be read"):
            read_weights(tmp_path / "a.jit")
    else:
        assert read_weights(tmp_path / "a.jit")[0] == {}
    assert not marker.exists()


# --- wrappers and folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        lambda state: {"generator": state, "discriminator": {"main.0.weight": torch.zeros(1)}},
        lambda state: {"model": state, "ema": 0.99},
        lambda state: {"model": {"state_dict": state}, "generator": 3},
    ],
    ids=["bare", "state_dict", "model_state_dict", "generator", "model", "nested"],
)
def test_wrappers(wrap: Any, theirs: Any, tmp_path: Path) -> None:
    """The weights are found inside."""
    torch.save(wrap(theirs.state_dict()), tmp_path / "a.pt")
    weights, notes = read_weights(tmp_path / "a.pt")
    assert weights.keys() == theirs.state_dict().keys() and notes == []


def test_averages_alone(theirs: Any, tmp_path: Path) -> None:
    """They are taken where there is nothing else, and that is told."""
    torch.save({"ema": theirs.state_dict()}, tmp_path / "a.pt")
    conversion = convert_checkpoint(tmp_path / "a.pt")
    assert conversion.notes == ["took the averaged weights, the only ones in the file"]
    COMPARING.assert_same(conversion.model, theirs)


def test_shards_of_pickles(theirs: Any, tmp_path: Path) -> None:
    """As Janus-Pro has them: `.bin` files with an index."""
    state = {f"gen_vision_model.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"language_model.norm.weight": torch.zeros(4)}
    names = {key: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, key in enumerate(sorted(state))}
    for name in set(names.values()):
        torch.save({key: state[key] for key in state if names[key] == name}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))

    conversion = convert_checkpoint(tmp_path)

    assert "took the tokenizer at 'gen_vision_model.', left out 1 other tensors" in conversion.notes
    COMPARING.assert_same(conversion.model, theirs)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match="pytorch_model-00002-of-00002.bin"):
        convert_checkpoint(tmp_path)


@pytest.mark.parametrize("others", [["a.fp16.bin"], ["a.fp16.safetensors"], ["a.non_ema.bin", "a.fp16.bin"]])
def test_variants_stand_back(others: list[str], theirs: Any, tmp_path: Path) -> None:
    """Of a file and the same in half precision beside it, the file is taken."""
    torch.save(theirs.state_dict(), tmp_path / "a.bin")
    for name in others:
        (tmp_path / name).write_bytes(b"")
    assert convert_checkpoint(tmp_path).layout == "taming"


def test_a_variant_alone_is_taken(theirs: Any, tmp_path: Path) -> None:
    """There is nothing better."""
    save_file({key: value.half() for key, value in theirs.state_dict().items()}, tmp_path / "a.fp16.safetensors")
    assert convert_checkpoint(tmp_path).layout == "taming"


# --- what cannot be read -------------------------------------------------------------------------------------------


def test_unreadable_files(tmp_path: Path) -> None:
    """Broken files, other kinds, and missing or ambiguous files have their messages."""
    for name in ("b.pth", "b.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 broken")
        with pytest.raises(ValueError, match=f"'{name}' cannot be read"):
            convert_checkpoint(tmp_path / name)
    torch.save([1], tmp_path / "c.pt")
    with pytest.raises(ValueError, match="holds a list"):
        convert_checkpoint(tmp_path / "c.pt")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="'notes.txt'"):
        convert_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        convert_checkpoint(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="found 3 of them, 'b.pth', 'b.safetensors'"):
        convert_checkpoint(tmp_path)
    (tmp_path / "pipeline" / "vqvae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="found none. Its folders are 'vqvae'"):
        convert_checkpoint(tmp_path / "pipeline")


def _cycle(length: int) -> dict[str, Any]:
    """Dictionaries, each of which is the `state_dict` or the `model` of the one before, in a circle."""
    circle: list[dict[str, Any]] = [{} for _ in range(length)]
    for number, each in enumerate(circle):
        each["model" if number % 2 else "state_dict"] = circle[(number + 1) % length]
    return circle[0]


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_state_dict_that_contains_itself_is_refused(length: int, tmp_path: Path) -> None:
    """It would be opened forever."""
    torch.save(_cycle(length), tmp_path / "a.pt")

    with pytest.raises(ValueError, match="contains itself"):
        convert_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(1).expand(10**5, 10**5)},
        {"a": torch.zeros(8).as_strided((2, 5), (3, 1)).as_strided((10**4, 8), (0, 1))},
        {"a": torch.zeros(100).as_strided((99, 99), (0, 1))},
        {str(number): torch.zeros(10**4, dtype=torch.bfloat16) for number in range(2)}
        | dict.fromkeys(map(str, range(2, 5000)), torch.ones(10**4, dtype=torch.bfloat16)),
        {"a": torch.empty(10**6, 10**6, device="meta")},
        {"a": torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6))},
    ],
)
def test_tensors_that_claim_more_than_the_file_holds_are_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """A few bytes would become many gigabytes when they are converted to float32."""
    torch.save({"state_dict": tensors}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 2**20

    with pytest.raises(
        ValueError, match=r"more than the file of [\d,]+ bytes holds|not an ordinary tensor|cannot be read"
    ):
        convert_checkpoint(tmp_path / "a.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """`torch.save` compresses nothing, but its reader unpacks what somebody has compressed."""
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))

    with pytest.raises(ValueError, match="claim to hold"):
        convert_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[1]"),
        ("config.json", "{"),
        ("config.json", "[" * 10**5),
        ("config.json", '{"vq_config": 5}'),
        ("model.safetensors.index.json", "{}"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b"}}'),
    ],
)
def test_malformed_json_beside_weights_is_a_message(name: str, text: str, tmp_path: Path) -> None:
    """Whatever is wrong in it, it ends in a `ValueError` that names the file."""
    (tmp_path / name).write_text(text)
    if name == "config.json":
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")

    with pytest.raises(ValueError, match=f"'{name}'"):
        convert_checkpoint(tmp_path)
