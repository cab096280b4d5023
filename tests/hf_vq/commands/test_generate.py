"""The generation command as people start it: grids, single files, animations, inpainting, and slips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, VQImageProcessor, VQModel
from hf_vq.commands import generate
from hf_vq.modeling.autoencoder_vq import SQVAEDecoder


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], None]:
    """The command's main function, in this process."""
    return generate.main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with two named classes and two tokens at each cell."""
    torch.manual_seed(0)
    vq: dict[str, Any] = {"architecture": "sqvae", "image_size": 32, "base_channels": 8, "num_res_blocks": 1}
    vq |= {"quantizer_type": "residual", "num_groups": 2, "share_codebook": False, "num_codes": 16, "embed_dim": 4}
    fields: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MaskGitConfig(vq_config=VQConfig(**vq), num_classes=2, id2label={0: "cat", 1: "dog"}, **fields)
    model = MaskGitModel(config)
    assert isinstance(model.tokenizer.decoder, SQVAEDecoder)
    with torch.no_grad():
        model.tokenizer.decoder.convt[-2].get_parameter("weight").mul_(100)  # pictures with contrast
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def run(main: Callable[[list[str]], None], folder: Path, output: Path, words: str = "") -> None:
    """Starts the script with a model and an output."""
    main(["--model", str(folder), "--device", "cpu", "--output", str(output), "--num_steps", "4", *words.split()])


def read(path: Path) -> np.ndarray:
    """The pixels of a picture."""
    return np.asarray(Image.open(path))


def test_a_grid_and_single_files_show_the_same(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three images in a grid of two columns; in batches of any size they are the same, in order."""
    words = "--class_labels cat 1 dog --guidance_scale 2 --seed 5"
    run(main, folder, tmp_path / "out" / "grid.png", words)
    run(main, folder, tmp_path / "single", words + " --batch_size 2")
    files = sorted((tmp_path / "single").iterdir())
    grid = read(tmp_path / "out" / "grid.png")

    assert [path.name for path in files] == ["00000.png", "00001.png", "00002.png"]
    assert grid.shape == (64, 64, 3) and (grid[32:, 32:] == 255).all()
    for number, path in enumerate(files):
        row, column = 32 * (number // 2), 32 * (number % 2)
        assert np.array_equal(read(path), grid[row : row + 32, column : column + 32])
    assert not np.array_equal(read(files[1]), read(files[2]))  # one class, two seeds
    assert f"Wrote 3 images to {tmp_path / 'single'}" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["confidence", "halton"])
def test_an_animation_fills_up(main: Callable[[list[str]], None], folder: Path, tmp_path: Path, sampler: str) -> None:
    """A frame for each step: gray cells give way to pictures, the last frame is the grid."""
    words = f"--num_images 2 --sampler {sampler} --batch_size 1"
    run(main, folder, tmp_path / "steps.gif", words)
    run(main, folder, tmp_path / "grid.png", words)
    animation = Image.open(tmp_path / "steps.gif")
    frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(animation)]
    gray = [(abs(frame - 128).max(-1) <= 1).mean() for frame in frames]

    assert len(frames) == 4 and frames[0].shape == (32, 64, 3)
    assert gray[0] > 0.5 > gray[-1] and gray == sorted(gray, reverse=True)
    assert abs(frames[-1] - read(tmp_path / "grid.png")).mean() < 16  # a palette of 256 colors is little for noise


def test_inpainting_keeps_the_rest(main: Callable[[list[str]], None], folder: Path, tmp_path: Path) -> None:
    """Where the mask is black the tokens are the image's; two seeds differ only around the white."""
    torch.manual_seed(1)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[:, 34:] = 255  # the last two of eight cells, after scaling and cropping
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for seed in (0, 1):
        words = f"--image {tmp_path}/in.png --mask {tmp_path}/mask.png --seed {seed} --class_labels dog"
        run(main, folder, tmp_path / f"{seed}.png", words)
    difference = abs(read(tmp_path / "0.png").astype(int) - read(tmp_path / "1.png").astype(int)).max((0, 2))

    assert difference[24:].max() > 20 and difference[:8].max() == 0


def photograph(folder: Path, size: tuple[int, int] = (48, 40)) -> str:
    """Writes a photograph, width x height, and a mask of its right quarter; returns the words that name them."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1] + (3,), dtype=np.uint8)).save(
        folder / "in.png"
    )
    mask = Image.new("L", size)
    mask.paste(255, (size[0] - 12, 0, *size))
    mask.save(folder / "mask.png")
    return f"--image {folder}/in.png --mask {folder}/mask.png"


def test_kept_pixels_are_the_photographs(main: Callable[[list[str]], None], folder: Path, tmp_path: Path) -> None:
    """Outside the mask to the bit, in the picture and in every frame of an animation."""
    words = photograph(tmp_path) + " --keep_pixels"
    run(main, folder, tmp_path / "kept.png", words)
    run(main, folder, tmp_path / "kept.webp", words)
    pixels = VQImageProcessor(image_size=32)(Image.open(tmp_path / "in.png"), return_tensors="pt").pixel_values
    expected = np.asarray(VQImageProcessor().postprocess(pixels, "np"))[0]
    frames = [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(Image.open(tmp_path / "kept.webp"))]

    for picture in (read(tmp_path / "kept.png"), *frames):
        assert np.array_equal(picture[:, :22], expected[:, :22])
    assert len(frames) == 4 and np.array_equal(frames[-1], read(tmp_path / "kept.png"))
    assert (abs(frames[0][:, 27:].astype(int) - 128) <= 1).mean() > 0.3  # gray, where there are no tokens yet


def test_masks_that_do_not_fit_are_told(main: Callable[[list[str]], None], folder: Path, tmp_path: Path) -> None:
    """All black, or of another aspect ratio."""
    words = photograph(tmp_path)
    Image.new("L", (48, 40)).save(tmp_path / "mask.png")
    with pytest.raises(SystemExit, match="error: The mask is black where the model sees it"):
        run(main, folder, tmp_path / "out.png", words)
    Image.new("L", (40, 40), 255).save(tmp_path / "mask.png")
    with pytest.raises(
        SystemExit, match="another aspect ratio than the image: it has 40 x 40 pixels, the image 48 x 40"
    ):
        run(main, folder, tmp_path / "out.png", words)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "name, format_", [("x.jpg", "JPEG"), ("x.JPEG", "JPEG"), ("x.bmp", "BMP"), ("x.webp", "WEBP")]
)
def test_the_name_says_the_format(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str,
    format_: str,
) -> None:  # fmt: skip
    """Files are what their names say; a picture that loses nothing visible has the pixels of the PNG."""
    run(main, folder, tmp_path / name, "--class_labels cat")
    run(main, folder, tmp_path / "x.png", "--class_labels cat")
    written = Image.open(tmp_path / name)

    assert written.format == format_ and f"Wrote 1 image to {tmp_path / name}\n" in capsys.readouterr().out
    written.seek(getattr(written, "n_frames", 1) - 1)
    assert abs(np.asarray(written.convert("RGB")).astype(int) - read(tmp_path / "x.png")).mean() < 6


@pytest.mark.parametrize("name", ["x.mp4", "x.MOV", "x.heic.avi", "x.ico", "x.psd"])
def test_other_files_are_refused(main: Callable[[list[str]], None], folder: Path, tmp_path: Path, name: str) -> None:
    """Before anything is made, and no folder of that name appears; other dots in names of folders are fine."""
    with pytest.raises(SystemExit, match=r"error: --output cannot be a \.\w+ file. Give a picture .*\.jpg.*a folder"):
        run(main, folder, tmp_path / name)
    assert not (tmp_path / name).exists()
    run(main, folder, tmp_path / "run-0.5")
    assert [path.name for path in (tmp_path / "run-0.5").iterdir()] == ["00000.png"]


def test_a_sweep_has_a_row_for_each_guidance(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same seeds in each row, labeled; a folder for each into a folder."""
    words = "--class_labels cat dog"
    run(main, folder, tmp_path / "sweep.png", words + " --guidance_sweep 1 2.5")
    run(main, folder, tmp_path / "sweep", words + " --guidance_sweep 1 2.5")
    run(main, folder, tmp_path / "one", words + " --guidance_scale 2.5")

    assert "Wrote 4 images with 2 guidance scales to" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["guidance_1", "guidance_2.5"]
    single = [read(tmp_path / "one" / f"0000{i}.png") for i in range(2)]
    for i in range(2):
        assert np.array_equal(read(tmp_path / "sweep" / "guidance_2.5" / f"0000{i}.png"), single[i])
    sheet = read(tmp_path / "sweep.png")
    assert sheet.shape[0] > 2 * 32 and sheet.shape[1] > 2 * 32 + 60  # two rows, and room for labels
    assert (sheet[:, :60] < 128).any()
    with pytest.raises(SystemExit, match="--guidance_sweep makes a picture or folders"):
        run(main, folder, tmp_path / "sweep.gif", words + " --guidance_sweep 1 2")


@pytest.mark.parametrize(
    "words, message",
    [
        ("--class_labels cow", "error: There is no class 'cow'.*'cat', 'dog'"),
        ("--class_labels Dog cow", "error: There are no classes 'Dog', 'cow'. Did you mean 'dog'?"),
        ("--keep_pixels", "error: --keep_pixels needs the image whose pixels are kept"),
        ("--guidance_sweep 1 2", "error: .*no effect without `class_labels`"),
        ("--class_labels 0 --guidance_sweep 1 2 --guidance_scale 3", "error: --guidance_sweep sets --guidance_scale"),
        ("--class_labels 2", r"error: .*must be in \[0, 2\)"),
        ("--class_labels 0 1 --num_images 3", "error: There are 2 labels for 3 images"),
        ("--sampler halton --choice_temperature 1", "error: .*has no effect"),
        ("--sampler random", "error: .*--sampler: invalid choice: 'random'"),
        ("--temprature 2", "error: Unknown field 'temprature' in the command line. Did you mean 'temperature'?"),
        ("--mask no.png", "error: --image and --mask need each other"),
        ("--batch_size 0", "error: --batch_size must be at least 1, got 0"),
        ("--image no.png --mask no.png", "error: .*no.png"),
    ],
)
def test_slips_end_with_a_message(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path, words: str, message: str
) -> None:
    """One line that says what is wrong, and nothing written."""
    with pytest.raises(SystemExit, match=message):
        run(main, folder, tmp_path / "grid.png", words)
    assert not (tmp_path / "grid.png").exists()


def test_a_tokenizer_is_no_generator(main: Callable[[list[str]], None], tmp_path: Path) -> None:
    """It says what kind of model it found."""
    VQModel(VQConfig(architecture="sqvae", image_size=16, base_channels=8)).save_pretrained(tmp_path / "vq")
    with pytest.raises(SystemExit, match="is not a generator but a VQModel"):
        run(main, tmp_path / "vq", tmp_path / "grid.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="error: .*empty"):
        run(main, tmp_path / "empty", tmp_path / "grid.png")
