"""Flow as a picture: the usual colours, known directions, and what must hold for any flow."""

import colorsys

import numpy as np
import pytest

from i3d.errors import UsageError
from i3d.flow.color import color_wheel, flow_to_color

# Direction (x, y) -> its colour at half the full length. Computed with flow_vis 0.1, a translation
# of the Middlebury benchmark's colorcode.cpp that is not ours. On 200,000 random vectors the two
# differed by one level in 3 of the 600,000 numbers, and not at all in the others.
HALF = {
    (1.0, 0.0): (255, 127, 127),
    (0.866, 0.5): (255, 165, 127),
    (0.5, 0.866): (255, 204, 127),
    (0.0, 1.0): (255, 242, 127),
    (-0.5, 0.866): (191, 255, 127),
    (-0.866, 0.5): (127, 255, 174),
    (-1.0, 0.0): (127, 232, 255),
    (-0.866, -0.5): (127, 179, 255),
    (-0.5, -0.866): (127, 127, 255),
    (0.0, -1.0): (171, 127, 255),
    (0.5, -0.866): (215, 127, 255),
    (0.866, -0.5): (255, 127, 244),
}


def color_of(x, y, *, max_pixels=1.0):
    flow = np.array([[[x, y]]], np.float32)
    return tuple(flow_to_color(flow, max_pixels=max_pixels)[0, 0].tolist())


def directions(count):
    """Unit vectors (1, count, 2), from just below right over down, left and up."""
    angles = 2 * np.pi * (np.arange(count) + 0.5) / count
    return np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)[None]


def hsv(colors):
    return np.array([colorsys.rgb_to_hsv(*(c / 255)) for c in colors.reshape(-1, 3)])


@pytest.mark.parametrize(("direction", "color"), HALF.items())
def test_colors_are_the_benchmarks(direction, color):
    x, y = direction
    assert color_of(x / 2, y / 2) == color


def test_wheel():
    """The arcs of the published wheel: 15, 6, 4, 11, 13 and 6 hues from one primary to the next."""
    wheel = color_wheel()
    assert wheel.shape == (55, 3)
    starts = wheel[np.cumsum([0, 15, 6, 4, 11, 13])].tolist()
    red, yellow, green = [255, 0, 0], [255, 255, 0], [0, 255, 0]
    cyan, blue, magenta = [0, 255, 255], [0, 0, 255], [255, 0, 255]
    assert starts == [red, yellow, green, cyan, blue, magenta]
    assert len(np.unique(wheel, axis=0)) == 55
    np.testing.assert_allclose(hsv(wheel)[:, 1:], 1)  # full saturation, full brightness


def test_no_motion_is_white():
    assert (flow_to_color(np.zeros((2, 3, 4, 2), np.float32)) == 255).all()
    assert color_of(-0.0, 0.0) == color_of(0.0, -0.0) == (255, 255, 255)


def test_hue_goes_once_around():
    hues = hsv(flow_to_color(directions(360)))[:, 0]
    assert (np.diff(hues) > 0).mean() > 0.97  # levels are whole numbers, so that some are equal
    assert np.diff(hues).min() > -0.01
    assert hues[0] < 0.01
    assert hues[-1] > 0.96


def test_saturation_grows_with_length():
    lengths = np.linspace(0, 0.999, 50, dtype=np.float32)
    for direction in directions(7)[0]:
        row = (lengths[:, None] * direction)[None]  # (1, 50, 2)
        saturation, value = hsv(flow_to_color(row, max_pixels=1.0))[:, 1:].T
        assert (np.diff(saturation) > 0).all()
        np.testing.assert_allclose(value, 1)
    hues = [hsv(flow_to_color(directions(90) * s, max_pixels=1.0))[:, 0] for s in (0.5, 1)]
    assert np.abs(hues[0] - hues[1]).max() < 0.01  # and only that; measured 0.004


def test_only_the_ratio_to_the_scale_counts():
    flow = np.random.default_rng(0).normal(0, 2, (3, 8, 9, 2)).astype(np.float32)
    colors = flow_to_color(flow, max_pixels=4.0)
    np.testing.assert_array_equal(flow_to_color(4 * flow, max_pixels=16.0), colors)
    for frame, picture in zip(flow, colors, strict=True):
        np.testing.assert_array_equal(flow_to_color(frame, max_pixels=4.0), picture)


def test_frames_share_the_longest_vector_as_scale():
    flow = np.zeros((2, 4, 4, 2), np.float32)
    flow[0, 1, 1] = -2, 0
    flow[1, 2, 2] = -4, 0
    colors = flow_to_color(flow)
    assert tuple(colors[1, 2, 2]) == color_of(-1, 0) == (0, 209, 255)
    assert tuple(colors[0, 1, 1]) == color_of(-0.5, 0)


def test_what_is_longer_than_the_scale_is_darker():
    assert color_of(0, 5) == color_of(0, 1.001) != color_of(0, 1)
    assert hsv(np.array(color_of(0, 5)))[0, 2] == pytest.approx(0.75, abs=0.01)


def test_unknown_flow_is_black():
    flow = np.array([[[np.nan, 0], [0, np.inf], [1, 0]]], np.float32)
    assert flow_to_color(flow)[0].tolist() == [[0, 0, 0], [0, 0, 0], [255, 0, 0]]


@pytest.mark.parametrize("shape", [(4, 5, 2), (3, 4, 5, 2), (2, 3, 4, 5, 2), (0, 4, 5, 2)])
def test_shapes(shape):
    colors = flow_to_color(np.ones(shape, np.float32))
    assert colors.shape == (*shape[:-1], 3)
    assert colors.dtype == np.uint8


@pytest.mark.parametrize(
    ("flow", "scale", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), None, r"float32 \(..., H, W, 2\) .* \(4, 5, 3\)"),
        (np.zeros((5, 2), np.float32), None, r"\(5, 2\)"),
        (np.zeros((4, 5, 2), np.uint8), None, "uint8"),
        (np.zeros((4, 5, 2), np.float32), 0.0, "max_pixels=0.0: it must be a positive"),
        (np.zeros((4, 5, 2), np.float32), np.nan, "max_pixels=nan"),
    ],
)
def test_what_is_no_flow(flow, scale, words):
    with pytest.raises(UsageError, match=words):
        flow_to_color(flow, max_pixels=scale)
