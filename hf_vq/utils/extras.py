"""The optional extras of the installation: a clear word where one is missing."""

from __future__ import annotations

from importlib.util import find_spec


def is_installed(*packages: str) -> bool:
    """Whether all these packages can be imported. It imports none."""
    return all(find_spec(package) is not None for package in packages)


def require(extra: str, *packages: str) -> None:
    """Raises a `ModuleNotFoundError` that names the extra, if one of its packages is not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} not installed: pip install 'hf_vq[{extra}]'",
            name=missing[0],
        )
