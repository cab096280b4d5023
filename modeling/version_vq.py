# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The version of hf_vq. `config.json` records it, and loading checks it."""

import re

__version__ = "0.1.0"

VERSION_KEY = "hf_vq_version"
"""The key of `config.json` that records the version of hf_vq that saved it."""


def check_version(recorded: str | None) -> None:
    """Refuses what a newer version has saved. The third number does not count: a patch release changes no format.

    Args:
        recorded: What `config.json` says. `None` for checkpoints older than the record.

    Raises:
        ValueError: If the recorded version is newer than this code, or is not a version.
    """
    if recorded is None:
        return
    numbers = re.match(r"(\d+)\.(\d+)", str(recorded))
    if numbers is None:
        raise ValueError(
            f"`{VERSION_KEY}` in config.json must be a version such as {__version__!r}, got {recorded!r}."
        )
    if tuple(map(int, numbers.groups())) > tuple(map(int, __version__.split(".")[:2])):
        raise ValueError(
            f"This checkpoint was made with hf_vq {recorded}, newer than the installed {__version__}, which might "
            "misread it. Run `pip install --upgrade hf_vq`."
        )


__all__ = ["VERSION_KEY", "__version__", "check_version"]
