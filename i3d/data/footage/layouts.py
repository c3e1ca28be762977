"""Arrays of videos -> frames in RGB: which axis is what, and which values black and white are.

    axes     (T, H, W, C), (T, C, H, W), (C, T, H, W) or (T, H, W), and the same after an N
    values   uint8: as they are;  0..1: x * 255;  -1..1: (x + 1) * 127.5;  0..255: as they are

Nothing is guessed: the channels are the one axis of size 1 or 3 where channels can be, or they are
named; the range of floats is always named.
"""

from collections.abc import Sequence

import numpy as np

from i3d.data.footage.options import Layout, ValueRange
from i3d.data.footage.tensors import StoredArray
from i3d.errors import DatasetError, I3DError
from i3d.video import MAX_PIXELS, MAX_SIDE

CHANNELS = (1, 3)  # gray, RGB
TOLERANCE = 1e-3  # of the range: what values may lie beyond it, as float16 rounds them
FLOATS = ("float16", "float32", "float64", "bfloat16")

_COLOURED = ("THWC", "TCHW", "CTHW")
BOUNDS = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}


def find_layout(
    shape: Sequence[int],
    layout: Layout | None,
    *,
    many: bool,
    what: str,
    error: type[I3DError] = DatasetError,
) -> str:
    """The order of a video's axes, such as ``TCHW``, without the N.

    Args:
        shape: of the array.
        layout: what is said of it, which decides where the shape leaves a choice.
        many: whether the array holds videos, and begins with N.
        what: what messages call the array, with its type and shape.
        error: what is raised.

    Raises:
        I3DError: names the shape, what it may be, and the option.
    """
    axes = tuple(shape[1:] if many else shape)
    mark = "N" if many else ""
    possible = [] if len(axes) != 4 else [x for x in _COLOURED if axes[x.index("C")] in CHANNELS]
    if len(axes) == 3:
        possible = ["THW"]
        # a single video has these axes, too
        one = [x for x in _COLOURED if many and shape[x.index("C")] in CHANNELS]
        if one and layout not in ("NTHW", "THW"):
            raise error(
                f"{what} may be one video ({', '.join(one)}) or gray ones (NTHW); for one video "
                "give a folder of such files, for gray ones --layout NTHW"
            )
    if not possible:
        kinds = f"{mark}THWC, {mark}TCHW, {mark}CTHW with 1 or 3 channels, or gray {mark}THW"
        hint = ""
        if many and len(shape) == 3:
            hint = "; one video alone is no set: give a folder of such files"
        elif not many and len(shape) == 5:
            hint = "; in a folder each file is one video: give a file of several by itself"
        raise error(f"{what} can be none of {kinds}{hint}")
    if len(possible) == 1:
        return possible[0]
    named = None if layout is None else layout.removeprefix("N")
    if named in possible:
        return named
    choices = ", ".join(f"{mark}{x}" for x in possible)
    given = "" if layout is None else f", and not {layout}"
    raise error(f"{what} can be {choices}{given}; say which by --layout {mark}{possible[0]}")


def check_values(
    array: StoredArray,
    value_range: ValueRange | None,
    *,
    what: str,
    error: type[I3DError] = DatasetError,
) -> None:
    """Refuse a type that holds no pixels, and floats of which nobody said the range.

    Raises:
        I3DError: names the type and the option.
    """
    if array.kind == "uint8":
        return
    if array.kind not in FLOATS:
        raise error(f"{what}: videos are uint8 or floats; save them as uint8, 0..255")
    if value_range is None:
        raise error(f"{what}: floats do not say what white is; give --range 0..1, -1..1 or 0..255")


def check_frames(
    shape: Sequence[int], layout: str, *, what: str, error: type[I3DError] = DatasetError
) -> None:
    """Refuse videos without pixels, and frames that would take too much memory.

    Args:
        shape: of one video.
        layout: its axes.
        what: what messages call it.
        error: what is raised.

    Raises:
        I3DError: names the size.
    """
    sides = dict(zip(layout, shape, strict=True))
    height, width = sides["H"], sides["W"]
    if not sides["T"] or not min(height, width):
        raise error(f"{what}: there is nothing to look at")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise error(
            f"{what}: frames of {width}x{height}; at most {MAX_SIDE} pixels a side and "
            f"{MAX_PIXELS} in all are read"
        )


def frames_first(video: np.ndarray, layout: str) -> np.ndarray:
    """A view (T, H, W, C) of a video with these axes; C is 1 where it has no such axis."""
    if layout == "THW":
        return video[..., None]
    return video.transpose([layout.index(axis) for axis in "THWC"])


def make_frame(values: np.ndarray, value_range: ValueRange | None, number: int) -> np.ndarray:
    """A frame as `i3d.data.footage.source.OpenVideo` gives it.

    Floats are clipped to black and white, beyond which they may lie by `TOLERANCE` of the range;
    float64 is computed with as float64, all others as float32.

    Args:
        values: uint8 or floats (H, W, C), C 1 or 3.
        value_range: of floats.
        number: the frame's, for messages.

    Returns:
        uint8 (H, W, 3), or float32 (H, W, 3) in 0..255; gray has three equal channels.

    Raises:
        DatasetError: a value is NaN or outside of the range.
    """
    if values.dtype != np.uint8:
        assert value_range is not None
        values = _scale(values, value_range, number)
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return np.ascontiguousarray(values)


def _scale(values: np.ndarray, value_range: ValueRange, number: int) -> np.ndarray:
    low, high = BOUNDS[value_range]
    slack = TOLERANCE * (high - low)
    least, most = float(values.min()), float(values.max())  # NaN where one is
    if not (least >= low - slack and most <= high + slack):
        bad = ~((values >= low - slack) & (values <= high + slack))
        value = float(values[tuple(np.argwhere(bad)[0])])
        remedy = "is no pixel" if np.isnan(value) else f"is outside of --range {value_range}"
        raise DatasetError(
            f"frame {number} holds {value:.6g}, which {remedy}; save it within its range"
        )
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if value_range == "0..1":
        values = values * 255
    elif value_range == "-1..1":
        values = (values + 1) * 127.5
    return np.clip(values, 0, 255).astype(np.float32, copy=False)
