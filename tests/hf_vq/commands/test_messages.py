"""What commands write to stderr."""

from __future__ import annotations

import subprocess
import sys

OTHERS_SPEAK = """
from hf_vq.commands.running import command

@command
def main(words):
    import datasets
    import huggingface_hub

    huggingface_hub.utils.logging.get_logger("huggingface_hub.utils._http").warning("Retrying in 1s")
    datasets.logging.get_logger("datasets.load").warning("A copy is used")

main([])
"""


def test_messages_of_other_libraries_come_once() -> None:
    """They write them themselves."""
    result = subprocess.run([sys.executable, "-c", OTHERS_SPEAK], capture_output=True, text=True)
    assert result.stderr.count("Retrying in 1s") == result.stderr.count("A copy is used") == 1, result.stderr
