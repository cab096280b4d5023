"""The pipeline "image-tokenization": any form of image to tokens, and what goes wrong on the way."""

import io
import json
import socket
import weakref
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_vq import ImageTokenizationPipeline, VQConfig, VQImageProcessor, VQModel

FIELDS = {
    "image_size": 16,
    "base_channels": 8,
    "channel_multiplier": [1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "mid_block_add_attention": False,
    "latent_channels": 8,
    "embed_dim": 4,
    "num_codes": 16,
    "alternating_steps": 0,
}


def make_pipe(processor=None, **fields):
    """Makes a pipeline around a small model whose k-means codes tell images apart."""
    torch.manual_seed(0)
    model = VQModel(VQConfig(**FIELDS | fields))
    processor = processor or VQImageProcessor(image_size=16)
    model(torch.rand(8, 3, 16, 16) * 2 - 1)
    return ImageTokenizationPipeline(model.eval(), image_processor=processor)


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


def make_images():
    """Makes five images, 20 x 24 pixels, that differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def tokens(pipe, images):
    """The tokens that the model itself gives for the images."""
    pixel_values = pipe.image_processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = pipe.model.encode(pixel_values).image_tokens
    assert tokens.shape == (5, 4, 4) and len(torch.unique(tokens)) > 4
    return tokens


@pytest.fixture(scope="module")
def files(images, tmp_path_factory):
    """Writes the images to files."""
    folder = tmp_path_factory.mktemp("images")
    for position, image in enumerate(images):
        image.save(folder / f"{position}.png")
    return sorted(folder.glob("*.png"))


def png(image):
    """Returns the bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def assert_tokens(results, tokens):
    """Checks that the results are those of the images, in their order."""
    results = list(results)
    assert len(results) == len(tokens)
    for result, expected in zip(results, tokens, strict=True):
        assert set(result) == {"image_tokens"}
        assert result["image_tokens"].dtype == torch.int64 and torch.equal(result["image_tokens"], expected)


def test_a_folder_and_a_repository_load_by_the_name_of_the_task(pipe, images, tokens, tmp_path, hub):
    """With hf_vq imported, neither the task nor a model on disk or on the Hub needs `trust_remote_code`."""
    pipe.save_pretrained(tmp_path / "vq")
    pipe.model.push_to_hub("alice/vq")
    pipe.image_processor.push_to_hub("alice/vq")
    for name in (str(tmp_path / "vq"), "alice/vq"):
        loaded = pipeline("image-tokenization", model=name)
        assert type(loaded) is ImageTokenizationPipeline and type(loaded.model) is VQModel
        assert_tokens(loaded(images), tokens)


def test_a_repository_whose_card_names_the_task_needs_no_task(pipe, images, tokens, tmp_path, hub):
    """`pipeline(model=...)` reads the task from the model card."""
    pipe.model.push_to_hub("alice/vq")
    pipe.image_processor.push_to_hub("alice/vq")
    hub.store.write(
        "alice/vq", "README.md", b"---\nlibrary_name: transformers\npipeline_tag: image-tokenization\n---\n"
    )
    assert_tokens(pipeline(model="alice/vq")(images), tokens)


def test_every_kind_of_image(pipe, images, tokens, files, hub):
    """Paths, URLs, PIL images, arrays and tensors of integers and floats give the model's tokens."""
    hub.store.create("models", "alice/images", False)
    hub.store.write("alice/images", "0.png", files[0].read_bytes())
    array = np.array(images[0])
    kinds = [
        str(files[0]),
        files[0],
        f"{hub.url}/alice/images/resolve/main/0.png",
        images[0],
        array,
        array.astype(np.float32) / 255,
        array.transpose(2, 0, 1),
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array / 255),
    ]
    for kind in kinds:
        assert_tokens([pipe(kind)], tokens[:1])
    assert_tokens(pipe(kinds, batch_size=4), tokens[:1].expand(len(kinds), -1, -1))


def test_transparent_images_from_a_url_lie_on_white(pipe, hub):
    """The alpha channel is not dropped, as with images from a file."""
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    hub.store.create("models", "alice/images", False)
    hub.store.write("alice/images", "clear.png", png(clear))
    white = pipe(Image.new("RGB", (16, 16), "white"))
    assert not torch.equal(white["image_tokens"], pipe(clear.convert("RGB"))["image_tokens"])
    assert_tokens([pipe(f"{hub.url}/alice/images/resolve/main/clear.png")], [white["image_tokens"]])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lists_and_batches_give_lists(pipe, images, tokens, batch_size):
    """A list, a tuple and a batch with four axes give lists, and the last batch may be smaller."""
    batch = np.stack([np.asarray(image) for image in images])
    for inputs in (images, tuple(images), batch, torch.from_numpy(batch)):
        results = pipe(inputs, batch_size=batch_size)
        assert isinstance(results, list)
        assert_tokens(results, tokens)
    assert pipe([], batch_size=batch_size) == [] and list(pipe(iter([]), batch_size=batch_size)) == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_data_sets_columns_and_generators(pipe, images, tokens, batch_size):
    """Every other source is read while its results are consumed."""
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": images}, features=features)
    sources = (KeyDataset(rows, "image"), rows["image"], rows.to_iterable_dataset()["image"], (i for i in images))
    for source in sources:
        results = pipe(source, batch_size=batch_size)
        assert not isinstance(results, list)
        assert_tokens(results, tokens)


def test_images_can_be_read_by_other_processes(pipe, files, tokens):
    """With workers, the order and the names in errors stay the same."""
    results = pipe([*files, "nowhere.png"], batch_size=2, num_workers=2, on_error="skip")
    assert results.pop()["error"].startswith("Image 5 (nowhere.png)")
    assert_tokens(results, tokens)


def test_a_stream_needs_the_memory_of_a_batch(pipe):
    """An endless generator is read a batch ahead at most, and its images are let go."""
    alive: set[int] = set()
    read = most = 0

    def endless():
        nonlocal read, most
        while True:
            image = np.full((16, 16, 3), read % 256, dtype=np.uint8)
            alive.add(read)
            weakref.finalize(image, alive.discard, read)
            read += 1
            most = max(most, len(alive))
            yield image

    results = pipe(endless(), batch_size=4)
    for count in range(1, 42):
        next(results)
        assert read <= count + 4
    assert most <= 6


def test_reconstructions_and_vectors(pipe, images, tokens):
    """On request each result holds the decoded image and the vectors of the model."""
    pixel_values = pipe.image_processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        encoded = pipe.model.encode(pixel_values)
        decoded = pipe.image_processor.postprocess(pipe.model.decode(tokens).decoded_pixel_values, "np")
    for batch_size in (1, 2):
        results = pipe(images, batch_size=batch_size, return_reconstruction=True, return_latents=True)
        for position, result in enumerate(results):
            assert set(result) == {"image_tokens", "reconstruction", "latents"}
            assert torch.equal(result["image_tokens"], tokens[position])
            torch.testing.assert_close(result["latents"], encoded.last_hidden_state[position])
            assert isinstance(result["reconstruction"], Image.Image)
            assert np.abs(np.asarray(result["reconstruction"], dtype=int) - decoded[position]).max() <= 1
            assert result["image_tokens"].untyped_storage().nbytes() == 16 * 8  # not a view of the batch


def test_settings_of_the_pipeline_are_defaults_of_its_calls(pipe, images):
    """Options of the pipeline hold until a call sets others."""
    other = ImageTokenizationPipeline(pipe.model, image_processor=pipe.image_processor, return_latents=True)
    assert set(other(images[0])) == {"image_tokens", "latents"}
    assert set(other(images[0], return_latents=False)) == {"image_tokens"}


def test_images_of_several_sizes_share_a_batch(images):
    """Without resizing and cropping, each image keeps its size in tokens, reconstruction and decoding."""
    pipe = make_pipe(VQImageProcessor(do_resize=False, do_center_crop=False))
    sizes = [(16, 16), (24, 8), (16, 16), (8, 32)]  # width, height
    resized = [image.resize(size) for image, size in zip(images, sizes, strict=False)]
    results = pipe(resized, batch_size=4, return_reconstruction=True)
    assert [tuple(result["image_tokens"].shape) for result in results] == [(4, 4), (2, 6), (4, 4), (8, 2)]
    assert [result["reconstruction"].size for result in results] == sizes
    assert [image.size for image in pipe.decode(results, batch_size=4)] == sizes
    with pytest.raises(ValueError, match=r"Image 0 .* must be multiples of 4.* got 16 x 18"):
        pipe([images[0].resize((18, 16))])


def bad_images(folder):
    """Maps a name to an input that is no image, and to what the error says about it."""
    text, truncated = folder / "notes.txt", folder / "half.png"
    text.write_text("not an image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    truncated.write_bytes(png(noise)[:6000])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/a.png"
    return {
        "missing": ("nowhere.png", r"nowhere\.png.*No such file"),
        "text": (text, r"notes\.txt.*cannot identify image file"),
        "truncated": (truncated, r"half\.png.*truncated"),
        "truncated PIL": (Image.open(truncated), r"half\.png.*truncated"),
        "unreachable": (closed, r"127\.0\.0\.1.*Connect"),
        "base64": ("data:image/png;base64,AAAA", "cannot identify image file"),
        "axes": (np.zeros((2, 16, 16, 3, 1), np.uint8), r"array of shape \(2, 16, 16, 3, 1\).*two or three axes"),
        "channels": (np.zeros((16, 16, 7), np.uint8), r"array of shape \(16, 16, 7\), uint8"),
        "range": (torch.full((3, 16, 16), 9.0), r"tensor of shape \(3, 16, 16\).*values in \[0, 1\]"),
        "none": (None, r"NoneType.*an image is a path, a URL"),
        "bytes": (b"png", r"bytes.*an image is a path, a URL"),
        "row": ({"image": 1, "label": 2}, r"the columns \['image', 'label'\].*dataset\[\"image\"\]"),
    }


NAMES = ["missing", "text", "truncated", "truncated PIL", "unreachable", "base64", "axes", "channels"]
NAMES += ["range", "none", "bytes", "row"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_image_is_named(pipe, images, tokens, tmp_path, capfd, name):
    """The error tells the position, the input and what is wrong. With `on_error="skip"` it takes the image's place."""
    bad, message = bad_images(tmp_path)[name]
    with pytest.raises(ValueError, match="(?s)^The image .*" + message):
        pipe(bad)
    with pytest.raises(ValueError, match="(?s)^Image 1 .*" + message):
        pipe([images[0], bad, images[1]], batch_size=3)
    results = pipe([images[0], bad, images[1]], batch_size=3, on_error="skip")
    assert set(results[1]) == {"error"} and results[1]["error"].startswith("Image 1 (")
    assert_tokens([results[0], results[2]], tokens[:2])


def test_an_error_of_the_server_is_named(pipe, hub):
    """A URL that answers with an error status is not taken for an image."""
    hub.store.create("models", "alice/images", False)
    with pytest.raises(ValueError, match=r"The image \(http.*/nothing\.png\).*404 Not Found"):
        pipe(f"{hub.url}/alice/images/resolve/main/nothing.png")


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_skipping_keeps_positions_and_reports_once(pipe, images, tokens, caplog, batch_size):
    """Results stay in place, even if a whole batch is bad, and one warning at the end gives count and names."""
    inputs = [f"{n}.png" for n in range(12)]
    for position, image in ((0, 0), (5, 1), (11, 2)):
        inputs[position] = images[image]
    for source in (inputs, (image for image in inputs)):
        caplog.clear()
        results = pipe(source, batch_size=batch_size, on_error="skip", return_reconstruction=True)
        assert isinstance(results, list) or not caplog.records  # a stream reports when it has ended
        results = list(results)
        assert [position for position, result in enumerate(results) if "error" not in result] == [0, 5, 11]
        for position, image in ((0, 0), (5, 1), (11, 2)):
            assert torch.equal(results[position]["image_tokens"], tokens[image])
        (record,) = caplog.records
        text = record.getMessage()
        assert "Skipped 9 images" in text and all(f"Image {n} ({n}.png)" in text for n in (1, 4, 6, 10))
    assert "more" not in text
    caplog.clear()
    pipe(["a.png"] * 25, batch_size=batch_size, on_error="skip")
    (record,) = caplog.records
    assert record.getMessage().count("a.png)") == 10 and "... and 15 more" in record.getMessage()
    assert set(pipe("a.png", on_error="skip")) == {"error"}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_image_that_the_data_set_cannot_decode_is_skipped(pipe, images, tokens, batch_size):
    """Columns decode when they are read. The error then comes from the data set, and it is reported all the same."""
    cells = [{"bytes": png(image), "path": None} for image in images[:3]]
    cells.insert(1, {"bytes": b"broken", "path": None})
    rows = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(ValueError, match=r"^Image 1 cannot be tokenized: .*cannot identify image file"):
        list(pipe(rows["image"], batch_size=batch_size))
    results = list(pipe(KeyDataset(rows, "image"), batch_size=batch_size, on_error="skip"))
    assert "cannot identify" in results.pop(1)["error"]
    assert_tokens(results, tokens[:3])


def test_bad_arguments_are_refused(pipe, images):
    """Unknown names and values raise before an image is read."""
    with pytest.raises(ValueError, match='`on_error` must be "raise" or "skip", got \'ignore\''):
        pipe(images, on_error="ignore")
    with pytest.raises(TypeError, match="return_tokens"):
        pipe(images, return_tokens=True)


def test_a_folder_is_read(pipe, files, tokens, tmp_path, caplog):
    """In the order of names, at any depth; results name their files, and what is no image is told."""
    for position, path in enumerate(("b.png", "a/z.PNG", "a/c.png", "c/.d.png", ".e/f.png")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(files[position].read_bytes())
    (tmp_path / "a" / "notes.txt").write_text("none")
    for folder in (str(tmp_path), tmp_path):
        results = pipe(folder, batch_size=2)
        assert [result.pop("file") for result in results] == ["a/c.png", "a/z.PNG", "b.png"]
        assert_tokens(results, tokens[[2, 1, 0]])
    assert "left out what is no image: a/notes.txt" in caplog.text
    (tmp_path / "broken.png").write_bytes(b"none")
    with pytest.raises(ValueError, match="Image 3 .*broken.png.*cannot identify"):
        pipe(tmp_path)
    assert pipe(tmp_path, on_error="skip")[3].keys() == {"file", "error"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder .*empty.*: expected files ending in .*jpg"):
        pipe(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"Image 0 \(.*\) .*it is a folder, which is read only if it is passed alone"):
        pipe([str(tmp_path)])


def test_other_formats(pipe, images, tokens):
    """Arrays, and text that JSON holds; both are read back."""
    options = {"return_reconstruction": True, "return_latents": True}
    expected = pipe(images, **options)
    arrays = pipe(images, output_format="numpy", **options)
    text = json.loads(json.dumps(pipe(images, output_format="json", **options)))
    for array, own, result in zip(arrays, text, expected, strict=True):
        assert np.array_equal(array["image_tokens"], result["image_tokens"].numpy())
        assert own["image_tokens"] == result["image_tokens"].tolist()
        assert array["latents"].dtype == np.float32 and own["latents"] == array["latents"].tolist()
        assert array["reconstruction"].dtype == np.uint8
        assert np.array_equal(array["reconstruction"], result["reconstruction"])
        assert_tokens([pipe(own["reconstruction"])], [pipe(result["reconstruction"])["image_tokens"]])
    for many in (arrays, text):
        assert all(np.array_equal(*pair) for pair in zip(pipe.decode(many), pipe.decode(tokens), strict=True))
    assert pipe.decode(tokens[0], output_format="numpy").shape == (16, 16, 3)
    assert pipe.decode(tokens, output_format="json")[0].startswith("data:image/png;base64,")
    setting = ImageTokenizationPipeline(pipe.model, image_processor=pipe.image_processor, output_format="json")
    assert setting(images[0])["image_tokens"] == tokens[0].tolist()
    assert isinstance(setting.decode(tokens[0]), str) and isinstance(
        setting.decode(tokens[0], output_format="numpy"), np.ndarray
    )
    for call in (pipe, pipe.decode):
        with pytest.raises(ValueError, match='`output_format` must be "numpy" or "json".*got .list'):
            call(images if call is pipe else tokens, output_format="list")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipe, images, tokens, tmp_path, dtype):
    """`dtype` gives a model in half precision. Images come out right, and almost all tokens are the same."""
    pipe.save_pretrained(tmp_path)
    half = pipeline("image-tokenization", model=str(tmp_path), dtype=dtype, device="cpu")
    assert half.dtype == dtype and half.model.encoder.conv_in.weight.dtype == dtype
    results = half(images, batch_size=2, return_reconstruction=True, return_latents=True)
    found = torch.stack([result["image_tokens"] for result in results])
    assert (found == tokens).float().mean() > 0.8
    assert results[0]["latents"].dtype == dtype and results[0]["reconstruction"].size == (16, 16)
    assert np.array_equal(half.decode(results)[0], results[0]["reconstruction"])


def test_the_installed_class_wins_over_the_saved_one(pipe, tmp_path):
    """The config on disk names the pipeline's file, but not once hf_vq has read it: the flag would be needed."""
    pipe.model.save_pretrained(tmp_path)
    assert '"impl": "pipeline_vq.ImageTokenizationPipeline"' in Path(tmp_path, "config.json").read_text()
    assert not hasattr(VQConfig.from_pretrained(tmp_path), "custom_pipelines")
