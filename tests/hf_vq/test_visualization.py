"""Pictures: what is drawn where, and that drawing has no side effects."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_vq import visualization
from hf_vq.visualization import projection, reconstruction_grid, sample_sheet, usage_curves, usage_histogram


def colored(image: PIL.Image.Image, color: str) -> int:
    """Number of pixels of exactly this colour."""
    return int((np.asarray(image) == np.array(PIL.Image.new("RGB", (1, 1), color).getpixel((0, 0)))).all(-1).sum())


def test_grid_shows_the_pixels_of_every_row():
    """Each image appears in its row, enlarged by a whole factor and otherwise unchanged."""
    originals = torch.full((3, 3, 8, 8), -1.0)
    originals[:, 0] = 1.0  # red
    decoded = torch.full((3, 3, 8, 8), -1.0)
    decoded[:, 2] = 5.0  # blue, and beyond the range
    grid = reconstruction_grid(originals, {"plain VQ": decoded}, max_images=2, width=300)

    red, blue = colored(grid, "#ff0000"), colored(grid, "#0000ff")
    assert red == blue and red % (2 * 64) == 0
    factor = (red // 128) ** 0.5
    assert factor == int(factor) and factor >= 8
    rows = (np.asarray(grid) == (255, 0, 0)).all(-1).any(1).nonzero()[0]
    assert rows.max() < (np.asarray(grid) == (0, 0, 255)).all(-1).any(1).nonzero()[0].min()


def test_grid_takes_grey_and_large_images():
    """One channel is drawn as grey, and images larger than their place are made smaller."""
    grid = reconstruction_grid(torch.zeros(4, 1, 512, 512), {"a": torch.zeros(4, 1, 512, 512)}, width=600)

    assert abs(grid.width - 600) < 20
    assert colored(grid, "#808080") > 2 * 4 * 100 * 100


def test_grid_refuses_reconstructions_of_other_images():
    """A row of another shape is an error that names it, and so is an empty batch."""
    with pytest.raises(ValueError, match="'small' has shape"):
        reconstruction_grid(torch.zeros(2, 3, 8, 8), {"small": torch.zeros(2, 3, 4, 4)})
    with pytest.raises(ValueError, match="expected images"):
        reconstruction_grid(torch.zeros(0, 3, 8, 8), {})


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects every text of the figures that are drawn from here on."""
    found: list[str] = []
    draw = visualization._picture

    def record(figure: Figure) -> PIL.Image.Image:
        found.extend(text.get_text() for text in figure.findobj(Text))
        return draw(figure)

    monkeypatch.setattr(visualization, "_picture", record)
    return found


def test_histogram_states_active_codes_and_perplexity(monkeypatch: pytest.MonkeyPatch):
    """The numbers that the picture is about stand in its legend, for each run."""
    found = texts(monkeypatch)
    usage_histogram({"plain VQ": torch.tensor([9, 9, 0, 0]), "ours": torch.full((4,), 5)})

    assert "plain VQ: 2 of 4 codes in use, perplexity 2" in found
    assert "ours: 4 of 4 codes in use, perplexity 4" in found


def test_histogram_survives_extremes():
    """One run without a name, no code in use, and one code are all drawn."""
    for counts in (torch.zeros(16), torch.eye(16)[0], torch.ones(1, dtype=torch.int64)):
        assert usage_histogram(counts).width > 800


def test_curves_keep_the_colours_of_the_runs(monkeypatch: pytest.MonkeyPatch):
    """The second run has the same colour in curves and histogram, and every run is in the legend."""
    found = texts(monkeypatch)
    curves = usage_curves({"plain VQ": [(0, 5), (100, 4)], "ours": iter([(0, 5), (100, 900)])}, maximum=1024)
    histogram = usage_histogram({"plain VQ": torch.ones(8), "ours": torch.full((8,), 50)})

    assert colored(curves, visualization.RUN_COLORS[1]) > 200
    assert colored(histogram, visualization.RUN_COLORS[1]) > 200
    assert {"plain VQ", "ours", "1,024", "perplexity", "training step"} <= set(found)


def cloud() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, codes and usage; the embeddings vary along the first axis, then the second."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([5.0, 2.0, 0.1, 0.1])
    embeddings, codes = (torch.randn(n, 4, generator=generator) * scale for n in (200, 50))
    return embeddings, codes, torch.arange(50) % 2


def test_components_are_those_of_greatest_variance_and_have_a_sign():
    """The first two axes are found and ordered, and neither the order of points nor a mirror image flips them."""
    embeddings, codes, _ = cloud()
    flat, points, explained = visualization._principal_components(embeddings, codes)

    first, second = (abs(np.corrcoef(flat[:, axis], embeddings[:, axis].numpy())[0, 1]) for axis in (0, 1))
    assert first > 0.99 and second > 0.99
    assert explained[0] > explained[1] and explained.sum() > 0.98
    again, _, _ = visualization._principal_components(embeddings.flip(0), codes)
    np.testing.assert_allclose(again[::-1], flat, atol=1e-9)
    assert points.shape == (50, 2)


def test_sheet_shows_every_sample_in_its_row():
    """Samples are enlarged by a whole factor, or shrunk to fit, three to a row, with a label left of each row."""
    samples = [PIL.Image.new("RGB", (8, 8), color) for color in ("red", "red", "red", "blue")]
    sheet = sample_sheet(samples, row_labels=["cats", "a very long name of a class, too long"], columns=3, width=600)

    factor = (colored(sheet, "#0000ff") // 64) ** 0.5
    assert factor == int(factor) and factor >= 4
    assert colored(sheet, "#ff0000") == 3 * colored(sheet, "#0000ff")
    pixels = np.asarray(sheet)
    red, blue = ((pixels == color).all(-1) for color in ((255, 0, 0), (0, 0, 255)))
    assert red.any(1).nonzero()[0].max() < blue.any(1).nonzero()[0].min()
    assert red.any(0).argmax() == blue.any(0).argmax() > 100  # the labels' place
    assert sample_sheet(samples, columns=3, width=300).width <= 300
    assert sample_sheet([PIL.Image.new("L", (512, 512))] * 2, columns=2, width=300).width <= 300


def test_sheet_refuses_labels_that_do_not_fit():
    """A label missing for a row, or no sample at all, is an error."""
    for samples, labels in (([], None), ([PIL.Image.new("L", (8, 8))] * 3, ["a"])):
        with pytest.raises(ValueError, match="a label for each row of 2"):
            sample_sheet(samples, row_labels=labels, columns=2)


def test_projection_draws_one_panel_for_each_run(monkeypatch: pytest.MonkeyPatch):
    """Several runs stand side by side with their use of the codes; the codes in use are visible on top."""
    embeddings, codes, used = cloud()
    found = texts(monkeypatch)
    both = projection(
        {"plain VQ": embeddings, "ours": embeddings},
        {"plain VQ": codes, "ours": codes},
        {"plain VQ": used, "ours": torch.ones(50).bool()},
    )

    assert "plain VQ\n25 of 50 codes in use" in found and "ours\n50 of 50 codes in use" in found
    assert colored(both, visualization.USED) > 500
    assert both.width > projection(embeddings, codes, used).width


def test_projection_takes_one_dimension_and_refuses_different_runs():
    """Codes of one dimension lie on a line; arguments for different runs are an error."""
    line = torch.linspace(0, 1, 9).unsqueeze(1)

    assert projection(line, line[:3], torch.ones(3)).width > 600
    with pytest.raises(ValueError, match="different runs"):
        projection({"a": line}, {"b": line}, {"a": torch.ones(9)})


def test_drawing_leaves_the_backend_alone(monkeypatch: pytest.MonkeyPatch):
    """No picture imports pyplot, so a user's backend and open figures are not touched."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    usage_histogram(torch.ones(4))
    usage_curves({"a": [(0, 1)]})

    assert "matplotlib.pyplot" not in sys.modules


def test_a_curve_without_points_is_an_error():
    """An empty picture would hide that a run's numbers were not found."""
    with pytest.raises(ValueError, match="'plain' has no points"):
        usage_curves({"full": [(1, 2.0)], "plain": []})
