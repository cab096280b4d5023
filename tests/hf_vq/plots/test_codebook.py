"""Pictures of a codebook: what is drawn where, and that drawing has no side effects."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_vq.plots import codebook, style
from hf_vq.plots.codebook import principal_components, project, projection, usage_curves, usage_histogram


def colored(image: PIL.Image.Image, color: str) -> int:
    """Counts the pixels of exactly this color."""
    return int((np.asarray(image) == np.array(PIL.Image.new("RGB", (1, 1), color).getpixel((0, 0)))).all(-1).sum())


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects every text of the figures that are drawn from here on."""
    found: list[str] = []
    draw = style.picture

    def record(figure: Figure) -> PIL.Image.Image:
        found.extend(text.get_text() for text in figure.findobj(Text))
        return draw(figure)

    monkeypatch.setattr(codebook, "picture", record)
    return found


def test_histogram_states_active_codes_and_perplexity(monkeypatch: pytest.MonkeyPatch):
    """The legend has the numbers of each run."""
    found = texts(monkeypatch)
    usage_histogram({"plain VQ": torch.tensor([9, 9, 0, 0]), "ours": torch.full((4,), 5)})

    assert "plain VQ: 2 of 4 codes in use, perplexity 2" in found
    assert "ours: 4 of 4 codes in use, perplexity 4" in found


def test_histogram_survives_extremes():
    """One run without a name, no code in use, and one code are all drawn."""
    for counts in (torch.zeros(16), torch.eye(16)[0], torch.ones(1, dtype=torch.int64)):
        assert usage_histogram(counts).width > 800


def test_curves_keep_the_colors_of_the_runs(monkeypatch: pytest.MonkeyPatch):
    """The second run has the same color in curves and histogram, and every run is in the legend."""
    found = texts(monkeypatch)
    curves = usage_curves({"plain VQ": [(0, 5), (100, 4)], "ours": iter([(0, 5), (100, 900)])}, maximum=1024)
    histogram = usage_histogram({"plain VQ": torch.ones(8), "ours": torch.full((8,), 50)})

    assert colored(curves, style.RUN_COLORS[1]) > 200
    assert colored(histogram, style.RUN_COLORS[1]) > 200
    assert {"plain VQ", "ours", "1,024", "perplexity", "training step"} <= set(found)


def cloud() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Makes embeddings, codes and usage. The embeddings vary most along the first axis, then along the second."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([5.0, 2.0, 0.1, 0.1])
    embeddings, codes = (torch.randn(n, 4, generator=generator) * scale for n in (200, 50))
    return embeddings, codes, torch.arange(50) % 2


def test_components_are_those_of_greatest_variance_and_have_a_sign():
    """The first two axes are found and ordered, and neither the order of points nor a mirror image flips them."""
    embeddings, codes, _ = cloud()
    center, axes, explained = principal_components([embeddings, codes])
    flat = project(embeddings, center, axes)

    first, second = (abs(np.corrcoef(flat[:, axis], embeddings[:, axis].numpy())[0, 1]) for axis in (0, 1))
    assert first > 0.99 and second > 0.99
    assert explained[0] > explained[1] and explained.sum() > 0.98
    again = project(embeddings, *principal_components([codes, embeddings.flip(0)])[:2])
    np.testing.assert_allclose(again, flat, atol=1e-9)
    assert project(codes, center, axes).shape == (50, 2)


def test_each_cloud_weighs_the_same():
    """Many codes along one axis do not hide fewer embeddings that spread further along another."""
    few, many = torch.zeros(10, 3), torch.zeros(10_000, 3)
    few[:, 0], many[:, 1] = torch.linspace(-2, 2, 10), torch.linspace(-1, 1, 10_000)
    axes = principal_components([few, many])[1]
    np.testing.assert_allclose(axes.abs(), [[1, 0, 0], [0, 1, 0]], atol=1e-9)


def test_projection_draws_one_panel_for_each_run(monkeypatch: pytest.MonkeyPatch):
    """Several runs stand side by side with their use of the codes, and the codes in use are visible on top."""
    embeddings, codes, used = cloud()
    found = texts(monkeypatch)
    both = projection(
        {"plain VQ": embeddings, "ours": embeddings},
        {"plain VQ": codes, "ours": codes},
        {"plain VQ": used, "ours": torch.ones(50).bool()},
    )

    assert "plain VQ\n25 of 50 codes in use" in found and "ours\n50 of 50 codes in use" in found
    assert colored(both, style.USED) > 500
    assert both.width > projection(embeddings, codes, used).width


def test_projection_takes_one_dimension_and_refuses_different_runs():
    """Codes of one dimension lie on a line, and arguments for different runs are an error."""
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
