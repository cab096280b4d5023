"""Names of a package that are imported on first use, so that importing the package costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Sequence[str] = (), extra: str | None = None
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Makes a package's `__all__`, `__getattr__` and `__dir__`.

    Args:
        package: The package's `__name__`.
        modules: For each module, by its name below the package, the names that the package offers.
        submodules: Modules that are names of the package themselves.
        extra: The optional extra of the installation that these names need, for the message when it is missing.

    Returns:
        The sorted names, the function that imports one of them, and the function that lists all.
    """
    homes = {name: f"{package}.{module}" for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            if extra is None or (error.name or "").partition(".")[0] == package.partition(".")[0]:
                raise
            raise ModuleNotFoundError(
                f"{name} needs the package {error.name!r}. Install it with: pip install 'hf_vq[{extra}]'",
                name=error.name,
            ) from error
        setattr(sys.modules[package], name, value)  # the next access finds it without this function
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *submodules})

    return sorted(homes), get, names
