"""Reads the tensors of a pickle or of a program that holds other objects, too, without making any of these.

A pickle names functions and classes, and calls them. Here only those that make tensors and ordered dictionaries are
what they are called. Every other name stands for a class that takes whatever it is given and does nothing.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSOR_MAKERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")


class _Inert:
    """What stands for an object of a class that is not made."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Module:
    """What stands for a module of a TorchScript program: its attributes."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain containers; it keeps the names of all else in `left_out`."""

    left_out: dict[str, Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in _TENSOR_MAKERS:
            make = getattr(torch._utils, name)
            return lambda *args: make(*args)  # a new one, since a pickle can also set attributes
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("torch", "Size"):
            return torch.Size
        return self.left_out.setdefault(f"{module}.{name}", type("Inert", (_Inert,), {}))


def load_inert(file: Path) -> tuple[Any, list[str]]:
    """Loads what `torch.save` wrote, with inert objects in place of those that are no tensors or plain containers.

    Args:
        file: A file that is no TorchScript program.

    Returns:
        The content, and the names of the classes and functions that were not called.
    """
    kind: Any = type("Unpickler", (_Unpickler,), {"left_out": {}})

    def load(stream: io.BufferedIOBase, **kwargs: Any) -> Any:
        return kind(stream, **kwargs).load()

    module = SimpleNamespace(Unpickler=kind, load=load, __name__="inert")
    content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=module)
    return content, list(kind.left_out)


def is_program(archive: zipfile.ZipFile) -> bool:
    """Whether an archive is a TorchScript program, which `torch.load` would compile."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_program(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    """Reads the tensors of a TorchScript program by name, without compiling or running it."""
    data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = data.removesuffix(".pkl")

    class Unpickler(_Unpickler):
        left_out = {}

        def find_class(self, module: str, name: str) -> Any:
            if module.split(".")[0] == "__torch__":
                return type("Module", (_Module,), {})
            if module == "torch._utils" and name == "_rebuild_tensor_v2":
                return lambda values, offset, size, stride, *_: values.as_strided(size, stride, offset)
            if module == "torch" and name.endswith("Storage"):
                return _STORAGES[name]
            return super().find_class(module, name)

        def persistent_load(self, pid: Any) -> torch.Tensor:
            _, dtype, key, _, _ = pid
            return torch.frombuffer(bytearray(archive.read(f"{folder}/{key}")), dtype=dtype)

    weights: dict[str, torch.Tensor] = {}
    pending = [("", Unpickler(io.BytesIO(archive.read(data))).load())]
    seen: set[int] = set()
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module, _Module) or id(module) in seen:
            continue
        seen.add(id(module))
        for name, value in module.attributes.items():
            if isinstance(value, torch.Tensor):
                weights[f"{prefix}{name}"] = value
            else:
                pending.append((f"{prefix}{name}.", value))
    return weights
