import numpy as np
import pytest

from agegen.faces.geometry import (
    DetectedFace,
    apply_matrix,
    compute_rotation,
    compute_scale,
    fit_similarity,
    invert_matrix,
    order_by_rows,
    warp_square,
)

POINTS = np.array([[10.0, 12.0], [40.0, 11.0], [25.0, 30.0], [14.0, 42.0], [37.0, 43.0]])


def make_matrix(degrees, scale, shift):
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1), (30, 0.2), (-75, 4), (170, 1.5)])
def test_fit_recovers_a_similarity(degrees, scale):
    matrix = make_matrix(degrees, scale, (5, -7))
    found = fit_similarity(POINTS, apply_matrix(matrix, POINTS))
    assert found == pytest.approx(matrix)
    assert compute_rotation(found) == pytest.approx(degrees)
    assert compute_scale(found) == pytest.approx(scale)
    assert apply_matrix(invert_matrix(found), apply_matrix(found, POINTS)) == pytest.approx(POINTS)


def test_fit_minimises_the_squared_error():
    rng = np.random.default_rng(0)
    target = apply_matrix(make_matrix(20, 2, (3, 4)), POINTS) + rng.normal(0, 1, POINTS.shape)
    best = fit_similarity(POINTS, target)

    def compute_error(matrix):
        return ((apply_matrix(matrix, POINTS) - target) ** 2).sum()

    for delta in rng.normal(0, 0.01, (50, 4)):
        a, b = best[0, 0] + delta[0], best[1, 0] + delta[1]
        other = np.array([[a, -b, best[0, 2] + delta[2]], [b, a, best[1, 2] + delta[3]]])
        assert compute_error(other) >= compute_error(best)


def test_identical_points_give_a_finite_fit():
    assert np.isfinite(fit_similarity(np.ones((5, 2)), POINTS)).all()


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 2.5])
def test_warped_square_shows_the_right_part(scale):
    rows, columns = np.mgrid[0:400, 0:600]
    image = np.stack([columns / 4, rows / 4, np.full_like(rows, 50)], axis=2).astype(np.uint8)
    matrix = make_matrix(0, scale, (-100 * scale, -60 * scale))
    side = round(200 * scale)
    square = warp_square(image, matrix, side)
    inside = square[2:-2, 2:-2].astype(float)
    left = 100 + np.arange(2, side - 2) / scale
    assert inside[:, :, 0].mean(axis=0) == pytest.approx(left / 4, abs=1.2)


def test_pixels_beyond_the_edges_are_black():
    image = np.full((100, 100, 3), 200, np.uint8)
    square = warp_square(image, make_matrix(0, 1, (50, 50)), 200)
    assert (square[:40, :40] == 0).all()
    assert (square[60:140, 60:140] == 200).all()
    assert (warp_square(image, make_matrix(0, 1, (-1000, 0)), 50) == 0).all()
    assert warp_square(image, make_matrix(0, 1e-9, (0, 0)), 50).shape == (50, 50, 3)


@pytest.mark.parametrize("seed", range(5))
def test_faces_are_ordered_by_rows(seed):
    """Three rows of heads that are not level, some of them larger, in a random order."""
    rng = np.random.default_rng(seed)
    expected = []
    for row in range(3):
        for column in range(6):
            half = rng.uniform(30, 45)
            x, y = 120 * column + rng.uniform(-10, 10), 150 * row + rng.uniform(-14, 14)
            expected.append(DetectedFace((x - half, y - half, x + half, y + half), np.zeros((5, 2)), 0.9))
    mixed = [expected[index] for index in rng.permutation(len(expected))]
    assert [face.box for face in order_by_rows(mixed)] == [face.box for face in expected]
    assert order_by_rows([]) == []
