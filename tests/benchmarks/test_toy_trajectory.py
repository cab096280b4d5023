"""The toy problem's paths: those of the paper's figure, and those of the layer where the two agree."""

import pytest
import torch
from toy_trajectory import CODE, METHODS, VECTOR, figure_trajectory, layer_trajectory, toy_trajectories


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("joint", [(-0.347, -0.900), (-0.502, -0.709), (-0.499, -0.433)]),
        ("synchronized", [(-0.347, -0.752), (-0.445, -0.494)]),
        ("both", [(-0.636, -0.752), (-0.373, -0.383), (-0.178, -0.176)]),
    ],
)
def test_the_recursions_reproduce_the_markers_of_the_figure(method: str, expected: list[tuple[float, float]]):
    """The code's first positions are those of the paper's figure within 0.004."""
    vectors, codes = figure_trajectory(method, len(expected))

    assert vectors[0].tolist() == pytest.approx(VECTOR) and codes[0].tolist() == pytest.approx(CODE)
    assert (codes[1:] - torch.tensor(expected)).abs().max() < 0.004


@pytest.mark.parametrize("method", ["no quantization", "joint", "synchronized"])
def test_the_layer_follows_the_figure_where_the_methods_agree(method: str):
    """Without inner steps the layer and the recursion take the same path."""
    for layer, figure in zip(layer_trajectory(method, 10), figure_trajectory(method, 10), strict=True):
        torch.testing.assert_close(layer, figure)


def test_the_inner_step_of_the_layer_is_that_of_the_figure():
    """In the first step both see the code moved by lr beta d; the figure then leaves it, the layer goes on."""
    _, (start, after) = figure_trajectory("alternating", 1)
    z, _ = layer_trajectory("alternating", 1)
    inner = start + 0.55 * 0.7 * (torch.tensor(VECTOR) - start)

    torch.testing.assert_close(after, inner)
    torch.testing.assert_close(z[1], z[0] - 0.55 * (0.3 * (z[0] - inner) + inner))


def test_the_methods_come_closer_in_the_order_of_the_paper():
    """After twelve steps of the layer: joint, synchronized, alternating, both, ever nearer to the solution."""
    distances = [layer_trajectory(method, 12)[1][-1].norm() for method in list(METHODS)[1:]]

    assert distances == sorted(distances, reverse=True)


def test_the_figure_is_drawn_and_unknown_methods_are_refused():
    """Seven panels and a curve; a method that does not exist is an error with those that do."""
    assert toy_trajectories(steps=3).width > 1500
    with pytest.raises(ValueError, match="no method 'sgd'; there are: no quantization, joint"):
        figure_trajectory("sgd", 1)
