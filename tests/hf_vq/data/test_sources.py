"""Finding images: the sample, folders and parquet files."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest

from hf_vq.data import sources
from hf_vq.data.images import ImageDataset
from hf_vq.data.places import Place, Source
from hf_vq.data.sources import image_splits, load_images, pinned_revision

from .pictures import encoded, noise


def test_sample_data_set_has_both_splits_and_labels():
    """The shipped sample needs no download: 1,700 and 206 labeled 32 px images."""
    train, test = load_images("noto-emoji-32"), load_images("noto-emoji-32", "test")

    assert (len(train), len(test)) == (1700, 206)
    assert set(train.column_names) == {"image", "label"}
    assert isinstance(train[0]["image"]["bytes"], bytes)
    assert ImageDataset(test, 32)[0]["pixel_values"].shape == (3, 32, 32)


def test_folder_gives_every_image_in_sorted_order_with_class_labels(folder: Path):
    """Images are found at any depth, sorted, and the first sub-folder is the label."""
    found = load_images(str(folder))

    assert [Path(row["image"]["path"]).name for row in found] == ["1.png", "3.png", "5.png", "0.png", "2.png", "4.png"]
    assert found.features["label"].names == ["cats", "dogs"]
    assert found["label"] == [0, 0, 0, 1, 1, 1]


def test_folder_splits_share_one_list_of_classes(folder: Path, tmp_path: Path):
    """Sub-folders named like splits are splits, and a label means the same in each of them."""
    root = tmp_path / "split"
    for path in ("train/a/0.png", "train/c/1.png", "val/b/2.png", "val/c/3.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8).save(root / path)

    assert load_images(str(root))["label"] == [0, 2]
    assert load_images(str(root), "validation")["label"] == [1, 2]
    with pytest.raises(ValueError, match="unknown split 'test'.*train, validation"):
        load_images(str(root), "test")


def test_folder_without_splits_can_be_sliced(folder: Path):
    """A split for evaluation can be cut from a plain folder, with nothing in both parts."""
    parts = [load_images(str(folder), spec) for spec in ("train[:4]", "train[4:]")]

    names = [row["image"]["path"] for part in parts for row in part]
    assert [len(part) for part in parts] == [4, 2]
    assert len(set(names)) == 6


def test_files_that_are_no_images_are_left_out_by_name(folder: Path, caplog: pytest.LogCaptureFixture):
    """Other files in a folder are left out, with their count and names in a warning; hidden files without."""
    (folder / "notes.txt").write_text("x")
    (folder / ".DS_Store").write_text("x")

    assert len(load_images(str(folder))) == 6
    assert "left out 1 files" in caplog.text and "notes.txt" in caplog.text


def test_a_folder_is_walked_as_imagefolder_does(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Hidden and special folders hold no classes, links to folders are left out by name, links to files are files."""
    for name in (".ipynb_checkpoints", "cats/.thumbnails", "__pycache__", "dogs/__MACOSX/cats", "../elsewhere/birds"):
        (folder / name).mkdir(parents=True)
        noise(8, 8).save(folder / name / "copy.png")
    for name, target in (("cats/up", ".."), ("self", "."), ("cows", "cats"), ("birds", "../elsewhere/birds")):
        (folder / name).symlink_to(target)
    (folder / "cats" / "linked.png").symlink_to("1.png")

    found = load_images(str(folder))

    paths = [row["image"]["path"] for row in found]
    assert [Path(path).name for path in paths] == "1.png 3.png 5.png linked.png 0.png 2.png 4.png".split()
    assert found.features["label"].names == ["cats", "dogs"]
    assert "left out 4 links to folders" in caplog.text and "birds, cats/up, cows, self" in caplog.text
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "c"))
    assert [row["image"]["path"] for row in theirs.cast_column("image", datasets.Image(decode=False))] == paths


@pytest.mark.parametrize("name", [".hidden", "__special"])
def test_a_folder_that_is_named_outright_is_read(folder: Path, name: str):
    """Only what lies below the named folder is judged by its name; a link may be named, too."""
    folder.rename(folder.with_name(name))
    folder.symlink_to(name)

    assert len(load_images(str(folder.with_name(name)))) == len(load_images(str(folder))) == 6


def test_a_pattern_gives_each_parquet_file_once(tmp_path: Path):
    """`**` enters no link to a folder, which may lead back up; `*` names both."""
    table = datasets.Dataset.from_list([{"image": encoded(noise(8, 8))}] * 3)
    (tmp_path / "part").mkdir()
    table.to_parquet(tmp_path / "part" / "0.parquet")
    (tmp_path / "part" / "up").symlink_to("..")
    (tmp_path / "again").symlink_to("part")

    for pattern in ("**/*.parquet", "part/**.parquet", "*/0*"):
        assert len(load_images(str(tmp_path / pattern))) == (6 if pattern == "*/0*" else 3)
    assert len(load_images(str(tmp_path))) == 3


def test_parquet_files_are_found_by_path_pattern_and_folder(tmp_path: Path):
    """One file is the train split whatever its name; patterns and folders take the split from the names."""
    for name, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 2), ("test", 1)):
        rows = {"picture": [{"bytes": encoded(noise(8, 8)), "path": None}] * count, "caption": ["x"] * count}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")

    assert len(load_images(str(tmp_path), image_column="picture")) == 5
    assert len(load_images(str(tmp_path / "*.parquet"), "test", image_column="picture")) == 1
    single = load_images(str(tmp_path / "test.parquet"), image_column="picture")
    assert single.column_names == ["image"] and len(single) == 1
    assert ImageDataset(single, 8)[0]["pixel_values"].shape == (3, 8, 8)


def test_unknown_columns_are_errors_that_list_what_is_there(tmp_path: Path):
    """A wrong or missing image column is an error that lists the columns."""
    datasets.Dataset.from_dict({"picture": [b"x"], "caption": ["x"]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(ValueError, match="unknown image column 'img'.*picture, caption"):
        load_images(str(tmp_path), image_column="img")
    with pytest.raises(ValueError, match="image_column.*picture, caption"):
        load_images(str(tmp_path))


def test_nothing_found_says_what_was_expected(tmp_path: Path):
    """An empty folder, a missing folder and a pattern without a match are errors that name the place."""
    with pytest.raises(FileNotFoundError, match="no images found in .*expected files ending in"):
        load_images(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_images(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        load_images(str(tmp_path / "*.parquet"))


def test_a_new_source_is_one_row(monkeypatch: pytest.MonkeyPatch):
    """A function in the table is all that a new kind of place needs; other places go on as they were."""

    class Colors(Source):
        def load(self, split: str, streaming: bool) -> datasets.Dataset:
            images = [PIL.Image.new("RGB", (8, 8), name) for name in self.files[split]]
            return datasets.Dataset.from_dict({"image": images, "class": [5, 6]}).cast_column(
                "image", datasets.Image()
            )

        def commit(self) -> str:
            return "abc"

    def find_colors(place: Place) -> Source | None:
        return Colors(place, {"test": ["red", "blue"]}) if place.dataset.startswith("colors:") else None

    monkeypatch.setattr(sources, "SOURCES", [find_colors, *sources.SOURCES])
    assert image_splits("colors:some") == ["test"] and pinned_revision("colors:some") == "abc"
    dataset = ImageDataset(load_images("colors:some", "test"), 4)
    items = [dataset[0], dataset[1]]
    assert [item["label"] for item in items] == [5, 6]
    assert items[1]["pixel_values"].mean((1, 2)).tolist() == [-1, -1, 1]
    assert len(load_images("noto-emoji-32", "test")) == 206


def test_local_places_have_splits_and_no_commit(folder: Path):
    """The sample, a folder and a parquet file are of no commit, and say their splits without loading them."""
    datasets.Dataset.from_dict({"image": [encoded(noise(8, 8))]}).to_parquet(folder.parent / "test.parquet")

    for place, splits in (
        ("noto-emoji-32", ["test", "train"]),
        (str(folder), ["train"]),
        (str(folder.parent / "test.parquet"), ["train"]),
        (str(folder.parent / "*.parquet"), ["test"]),
    ):
        assert sorted(image_splits(place)) == splits and pinned_revision(place) is None


def test_places_that_are_no_source_are_errors(folder: Path):
    """A single image, and a path that is not there, are not looked for on the Hub."""
    finders: list[Callable[[str], Any]] = [load_images, image_splits]
    for function in finders:
        with pytest.raises(ValueError, match="is a single file: expected a folder of images"):
            function(str(folder / "cats" / "1.png"))
    for function in [*finders, pinned_revision]:
        for place in (str(folder / "missing"), "./missing", "a/b/c"):
            with pytest.raises(FileNotFoundError, match=f"no images found in '{place}': there is no such folder"):
                function(place)


@pytest.mark.parametrize("column", ["image", "jpg"])
def test_streams_give_images_as_they_are(column: str, tmp_path: Path):
    """Whatever their column is called, they are not decoded and encoded once more, which costs time and pixels."""
    file = io.BytesIO()
    noise(32, 32).save(file, "JPEG")
    content = file.getvalue()
    features = datasets.Features({column: datasets.Image()})
    rows = {column: [{"bytes": content, "path": "a.jpg"}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")

    for streaming in (False, True):
        row: Any = next(iter(load_images(str(tmp_path), streaming=streaming)))
        assert row["image"] == {"bytes": content, "path": "a.jpg"}
