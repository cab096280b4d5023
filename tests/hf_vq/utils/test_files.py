"""Files that are either complete or not there."""

from __future__ import annotations

import os
from pathlib import Path

import PIL.Image
import pytest

from hf_vq.utils import files
from hf_vq.utils.files import TEMPORARY_PREFIX, atomic_file, discard_leftovers, write_json, write_text


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    """Until the end the old content stands there, and afterwards nothing else lies beside the new one."""
    path = tmp_path / "a.txt"
    path.write_text("old")

    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_what_stops_the_writing_leaves_the_old_file(tmp_path: Path, stop: type[BaseException]) -> None:
    """An error or a Ctrl-C leaves what was there, and no half file."""
    path = tmp_path / "a.txt"
    path.write_text("old")

    with pytest.raises(stop), atomic_file(path) as temporary:
        temporary.write_text("ne")
        raise stop
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    """Each writer has a file of its own. The last one to finish gives the whole content."""
    path = tmp_path / "a.txt"

    with atomic_file(path) as first:
        first.write_text("first, which is long")
        with atomic_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first, which is long" and names(tmp_path) == ["a.txt"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not leave an empty file under the name: the file is flushed, then renamed."""
    calls = []
    replace = os.replace

    def renamed(temporary: Path, path: Path) -> None:
        calls.append(("replace", path.name))
        replace(temporary, path)

    monkeypatch.setattr(files, "flush", lambda path: calls.append(("flush", path.read_text())))
    monkeypatch.setattr(os, "replace", renamed)
    write_text("whole", tmp_path / "a.txt")
    assert calls == [("flush", "whole"), ("replace", "a.txt")]


def test_the_temporary_name_tells_its_kind(tmp_path: Path) -> None:
    """Pillow takes the format from the name's end; load_images and file lists pass over hidden names."""
    with atomic_file(tmp_path / "a.png") as temporary:
        assert temporary.name.startswith(TEMPORARY_PREFIX) and temporary.suffix == ".png"
        PIL.Image.new("RGB", (2, 2)).save(temporary)
    assert PIL.Image.open(tmp_path / "a.png").format == "PNG"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """Indented, with a line break at the end; a value that JSON does not know changes nothing."""
    write_json({"a": ["ü"]}, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "a": [\n') and text.endswith("}\n")

    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text and names(tmp_path) == ["a.json"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Files and folders with a temporary name go, others stay; a folder that is not there is none to clean."""
    (tmp_path / f"{TEMPORARY_PREFIX}x-a.txt").write_text("half")
    (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()
    (tmp_path / f"{TEMPORARY_PREFIX}folder" / "inside").write_text("half")
    (tmp_path / "a.txt").write_text("whole")

    discard_leftovers(tmp_path)
    discard_leftovers(tmp_path / "missing")
    assert names(tmp_path) == ["a.txt"]
