"""Flow as a picture: the direction is the hue, the length the saturation, no motion is white.

               up: blue
                  |
    left: cyan ---+--- right: red
                  |
             down: yellow

The colour wheel is the one of Baker et al., "A Database and Evaluation Methodology for Optical
Flow" (IJCV 2011), in which the Middlebury benchmark and most papers show flow.
"""

import numpy as np

from i3d.errors import UsageError

# (hues, colour that the arc begins with); it runs evenly towards the next arc's first colour. There
# are more hues where the eye tells more of them apart.
_ARCS = (
    (15, (255, 0, 0)),  # red to yellow
    (6, (255, 255, 0)),  # yellow to green
    (4, (0, 255, 0)),  # green to cyan
    (11, (0, 255, 255)),  # cyan to blue
    (13, (0, 0, 255)),  # blue to magenta
    (6, (255, 0, 255)),  # magenta to red
)
_BEYOND = 0.75  # how bright a vector longer than the scale is, of its full hue
_UNKNOWN = 0  # black, which no vector has


def color_wheel() -> np.ndarray:
    """The 55 fully saturated hues, from red over yellow, green and blue: uint8 (55, 3) RGB."""
    hues = []
    for (count, start), (_, end) in zip(_ARCS, (*_ARCS[1:], _ARCS[0]), strict=True):
        first, last = np.array(start), np.array(end)
        for i in range(count):
            way = np.floor(255 * i / count)  # whole levels, as the benchmark's program takes them
            hues.append(first + np.sign(last - first) * way)
    return np.array(hues, np.uint8)


def flow_to_color(flow: np.ndarray, *, max_pixels: float | None = None) -> np.ndarray:
    """Paint flow in the usual colours.

    Args:
        flow: float32 (..., H, W, 2), pixels, x (to the right) before y (down).
        max_pixels: length that has the full colour; longer vectors are darker. Default: the longest
            vector of the whole array, so that all frames of a video share a scale.

    Returns:
        uint8 (..., H, W, 3) RGB. Where flow is unknown (NaN or infinite), it is black.

    Raises:
        UsageError: wrong type or shape, or a scale that is not positive.
    """
    if flow.dtype.kind != "f" or flow.ndim < 3 or flow.shape[-1] != 2:
        raise UsageError(
            f"flow must be float32 (..., H, W, 2) in pixels, not {flow.dtype} {flow.shape}"
        )
    if max_pixels is not None and not 0 < max_pixels < np.inf:
        raise UsageError(f"max_pixels={max_pixels}: it must be a positive number of pixels")
    known = np.isfinite(flow).all(-1)
    x, y = np.moveaxis(np.where(known[..., None], flow, 0).astype(np.float64), -1, 0)
    length = np.hypot(x, y)
    if max_pixels is None:
        max_pixels = float(length.max(initial=0)) or 1.0
    length /= max_pixels

    wheel = color_wheel() / 255
    # From -1 to 1 once around: right, down, left, up. The hues span it from the first to the last,
    # as in the benchmark's program; the step from the last red to the first one is at "right".
    angle = np.arctan2(-y, -x) / np.pi
    place = (angle + 1) / 2 * (len(wheel) - 1)
    before = place.astype(np.intp)
    share = (place - before)[..., None]
    hue = (1 - share) * wheel[before] + share * wheel[(before + 1) % len(wheel)]

    length = length[..., None]
    shade = np.where(length <= 1, 1 - length * (1 - hue), _BEYOND * hue)
    shade[~known] = _UNKNOWN
    return np.floor(255 * shade).astype(np.uint8)
