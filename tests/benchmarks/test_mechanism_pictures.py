"""Pictures of a codebook over training: common axes, the right steps, and files that play."""

import sys
from pathlib import Path
from typing import Any

import mechanism_pictures
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from mechanism_pictures import codebook_curves, density_ridges, projection_animation, projection_panels, save_animation

from hf_vq.plots import style
from hf_vq.training.snapshots import CodebookSnapshot

METRICS = ("perplexity", "usage", "gradient_gap", "mean_distance", "std_distance", "gradient_cosine")


def run(steps: tuple[int, ...] = (1, 10, 20, 30, 40, 50), drift: float = 0.2) -> list[CodebookSnapshot]:
    """Snapshots whose embeddings move along the first axis by `drift` a step, in six dimensions; codes stay."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 0.5, 0.1, 0.1, 0.1, 0.1])
    codes = torch.randn(24, 6, generator=generator) * scale
    snapshots = []
    for step in steps:
        embeddings = torch.randn(60, 6, generator=generator) * scale
        embeddings[:, 0] += drift * step
        uses = torch.zeros(24, dtype=torch.int64)
        uses[: step // 5] = step
        metrics = {name: 0.5 + step / 100 for name in METRICS}
        snapshots.append(CodebookSnapshot(step, metrics, embeddings, codes, torch.arange(24), uses))
    return snapshots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects every figure that is drawn."""
    found: list[Figure] = []

    def record(figure: Figure) -> PIL.Image.Image:
        found.append(figure)
        return style.picture(figure)

    monkeypatch.setattr(mechanism_pictures, "picture", record)
    return found


def texts(figure: Figure) -> set[str]:
    """Every text of a figure."""
    return {text.get_text() for text in figure.findobj(Text)}


def scattered(axes: Any) -> list[np.ndarray]:
    """P, C and Q of a map, as drawn."""
    return [np.asarray(collection.get_offsets()) for collection in axes.collections]


def test_panels_show_motion_on_common_axes(drawn: list[Figure]):
    """Codes that stay lie at one place in all panels of a run, and embeddings move by what they have moved."""
    picture = projection_panels({"standard": run(), "full method": run(drift=0.0)}, steps=[1, 22, 50])

    (figure,) = drawn
    panels = [axes for axes in figure.axes if axes.collections]
    assert len(panels) == 6 and picture.width > picture.height
    assert len({axes.get_xlim() for axes in panels[:3]}) == 1 and len({axes.get_ylim() for axes in panels[:3]}) == 1
    for axes in panels[:3]:
        np.testing.assert_allclose(scattered(axes)[1], scattered(panels[0])[1])
    moved = [abs(scattered(axes)[0][:, 0].mean() - scattered(axes)[1][:, 0].mean()) for axes in panels[:3]]
    assert moved[0] < 1 < moved[1] < 5 and moved[2] == pytest.approx(10, abs=1)
    assert [len(scattered(axes)[2]) for axes in panels[:3]] == [0, 4, 10]
    found = texts(figure)
    assert {"step 1", "step 20", "step 50", "standard", "full method"} <= found
    assert {"10 of 24 codes in use", "P: embeddings", "C: all codes", "Q: codes in use"} <= found


def test_rows_of_other_steps_have_titles_of_their_own(drawn: list[Figure]):
    """A column whose runs have snapshots of different steps says so in each row; else once, on top."""
    projection_panels({"a": run(), "b": run((1, 12, 50)), "c": run((1, 12, 50))}, steps=[1, 11, 50])

    panels = [axes for axes in drawn[0].axes if axes.collections]
    titles = [axes.get_title() for axes in panels]
    assert titles == ["step 1", "step 10", "step 50", "step 1", "step 12", "step 50", "", "", ""]


def test_panels_hold_every_point(drawn: list[Figure]):
    """Nothing lies outside of the axes, and a unit is as long on both of them."""
    projection_panels({"a": run()})

    for axes in drawn[0].axes:
        points = np.concatenate(scattered(axes))
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert (points >= (left, bottom)).all() and (points <= (right, top)).all()
        assert right - left == pytest.approx(top - bottom)


def test_neighborhoods_survive_in_tsne(drawn: list[Figure]):
    """Two far clusters of embeddings stay apart, and the same points are placed alike in each picture."""
    snapshots = run(steps=(1, 2))
    for snapshot in snapshots:
        snapshot.embeddings[::2, 1] += 50
    projection_panels({"a": snapshots}, method="tsne")
    projection_panels({"a": snapshots}, method="tsne")

    first, second = (scattered(figure.axes[0])[0] for figure in drawn)
    np.testing.assert_array_equal(first, second)
    near, far = first[::2], first[1::2]
    assert len(first) == 60
    between = np.linalg.norm(near.mean(0) - far.mean(0))
    assert between > 2 * max(near.std(0).max(), far.std(0).max())


def test_tsne_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    """Without scikit-learn the error says how to get it; an unknown method names the known ones."""
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        projection_panels({"a": run()}, method="tsne")
    with pytest.raises(ValueError, match="'pca' or 'tsne', got 'umap'"):
        projection_panels({"a": run()}, method="umap")  # type: ignore[arg-type]


def test_the_animation_has_a_frame_for_each_common_step(tmp_path: Path, drawn: list[Figure]):
    """Frames are of the steps that all runs have, on common axes, and the file plays them with a rest at the end."""
    frames = projection_animation({"a": run(), "b": run(steps=(1, 20, 50))}, dpi=60)
    save_animation(frames, tmp_path / "motion.gif", milliseconds=100)

    assert ["step 1", "step 20", "step 50"] == [figure.get_suptitle() for figure in drawn]
    assert len({figure.axes[0].get_xlim() for figure in drawn}) == 1
    for figure, (_, _, used) in zip(drawn, map(scattered, [figure.axes[0] for figure in drawn]), strict=True):
        assert len(used) == int(figure.get_suptitle().removeprefix("step ")) // 5  # so the points are of that step
    with PIL.Image.open(tmp_path / "motion.gif") as animation:
        played = [(image.convert("RGB"), image.info["duration"]) for image in PIL.ImageSequence.Iterator(animation)]
    assert [duration for _, duration in played] == [100, 100, 500]
    for (image, _), frame in zip(played, frames, strict=True):
        assert image.size == frame.size
        assert np.abs(np.asarray(image, float) - np.asarray(frame, float)).mean() < 4
    assert len(projection_animation({"a": run()}, max_frames=2, dpi=60)) == 2


def test_runs_without_a_common_step_and_empty_runs_are_refused(tmp_path: Path):
    """There is nothing to draw, and the error says of which run."""
    with pytest.raises(ValueError, match="no step in common"):
        projection_animation({"a": run(steps=(1, 2)), "b": run(steps=(3,))})
    for draw in (projection_panels, projection_animation, density_ridges, codebook_curves):
        with pytest.raises(ValueError, match="no snapshots of 'b'"):
            draw({"a": run(), "b": []})
    with pytest.raises(ValueError, match="no frame"):
        save_animation([], tmp_path / "none.gif")


def test_ridges_go_down_with_time_and_follow_the_embeddings(drawn: list[Figure]):
    """A ridge for each step, labeled; the peak of P is where the embeddings are, that of C stays."""
    density_ridges({"a": run()})

    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "10", "20", "30", "40", "50"]
    assert list(axes.get_yticks()) == [0, -1, -2, -3, -4, -5]
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    peaks = [points[np.argmax(points[:, 1]), 0] for points in lines if len(points)]
    p, c = np.array(peaks[::2]), np.array(peaks[1::2])
    np.testing.assert_allclose(np.abs(p - p[0]), [0, 1.8, 3.8, 5.8, 7.8, 9.8], atol=1)
    assert len(c) == 6 and np.ptp(c) < 1e-9
    assert {"P: embeddings", "C: all codes", "Q: codes in use"} <= texts(drawn[0])


def test_a_density_integrates_to_one_and_finds_its_values():
    """The kernel density is one, whether of many values or of a single code."""
    at = np.linspace(-10, 10, 400)
    for values in (np.random.default_rng(0).normal(2, 1, 5000), np.array([2.0])):
        density = mechanism_pictures._density(values, at)
        assert density.sum() * (at[1] - at[0]) == pytest.approx(1, abs=1e-3)
        assert (at * density).sum() * (at[1] - at[0]) == pytest.approx(2, abs=0.1)


def test_curves_show_each_metric_of_each_run(drawn: list[Figure]):
    """Six panels, in each a line with the run's numbers; the runs are in the legend, in their colors."""
    codebook_curves({"standard": run(), "full method": run(steps=(1, 50))})

    assert len(drawn[0].axes) == 6
    for axes in drawn[0].axes:
        first, second = (np.asarray(line.get_xydata()).tolist() for line in axes.lines)
        assert first == [[1, 0.51], [10, 0.6], [20, 0.7], [30, 0.8], [40, 0.9], [50, 1.0]]
        assert [step for step, _ in second] == [1, 50]
        assert [line.get_color() for line in axes.lines] == list(style.RUN_COLORS[:2])
    assert {"standard", "full method", "share of the codes in use"} <= texts(drawn[0])
