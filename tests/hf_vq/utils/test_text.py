"""Names and lists in messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_vq.utils.text import counted, is_hub_id, public_name, shorten


def test_long_lists_are_cut_and_counted() -> None:
    """Ten names by default, quoted on demand, of any collection."""
    names = [f"{number}.png" for number in range(2011)]

    assert shorten(names[:2]) == "0.png, 1.png"
    assert shorten(names[:10]).endswith(", 9.png") and shorten([]) == ""
    assert shorten(names).endswith(", 9.png and 2,001 more")
    assert shorten({"a": 1, "b": 2, "c": 3}, 2, quoted=True) == "'a', 'b' and 1 more"


def test_one_is_no_plural() -> None:
    """Thousands are separated, and a plural of its own can be said."""
    assert [counted(count, "file") for count in (0, 1, 1700)] == ["0 files", "1 file", "1,700 files"]
    assert [counted(count, "process", "processes") for count in (1, 2)] == ["1 process", "2 processes"]


def test_links_and_patterns_in_public_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests of token data sets name what a link leads to; a relative pattern stays, an absolute one does not."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)

    assert public_name("link") == "link" and public_name("link", follow_links=True) == "photos"
    assert public_name(str(tmp_path / "gone"), follow_links=True) == "gone"
    assert public_name("shards/*.parquet") == "shards/*.parquet"
    assert public_name(str(tmp_path / "shards" / "*.parquet"), follow_links=True) == "*.parquet"
    assert [public_name(name, follow_links=True) for name in ("alice/emoji", "noto-emoji-32")] == [
        "alice/emoji",
        "noto-emoji-32",
    ]


@pytest.mark.parametrize("name", ["alice/emoji", "a/b", "A-1/b_c.d-2", "_a/b", "alice/0"])
def test_names_of_repositories(name: str) -> None:
    """A card may link them."""
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name",
    [
        "daten/bücher",
        "данные/кошки",
        "数据/猫",
        "../photos",
        "./photos",
        "~/photos",
        "a--b/c",
        "a/b..c",
        "-a/b",
        "a/b-",
    ]
    + ["a/b-", "a/b.", "a/.b", "a/b/c", "a b/c", "a/b\n", "photos", "", "a/" + "b" * 97, "a/٣"],
)
def test_paths_are_no_names_of_repositories(name: str) -> None:
    """A folder that is gone, with other letters than the Hub's or other rules, is not linked."""
    assert not is_hub_id(name)
