"""Videos that a program has in memory -> frames: any layout and range, on their own device."""

import warnings
from typing import Literal, get_args

import numpy as np
import torch

from i3d.data.footage.layouts import BOUNDS, CHANNELS, TOLERANCE
from i3d.data.footage.options import ValueRange
from i3d.errors import DatasetError, UsageError
from i3d.tasks.fvd.pixels import check_size
from i3d.tasks.options import check_choice

Layout = Literal["NTHWC", "NTCHW", "NCTHW", "NTHW"]

_TO_FRAMES = {  # layout -> its axes in the order of frames
    "NTHWC": (0, 1, 2, 3, 4),
    "NTCHW": (0, 1, 3, 4, 2),
    "NCTHW": (0, 2, 3, 4, 1),
}


def to_frames(
    videos: "np.ndarray | torch.Tensor", layout: Layout, value_range: ValueRange | None
) -> torch.Tensor:
    """Videos of a batch as frames, on their device.

    Args:
        videos: uint8 or float, of `layout`.
        layout: order of the axes: videos N, frames T, height, width, and channels C: 3, RGB, or 1,
            gray, which ``NTHW`` is too.
        value_range: of floats; None: they are refused.

    Returns:
        uint8, or float32 in 0..255, (N, T, H, W, 3); a view where it can be.

    Raises:
        UsageError: another shape or type, or floats of an unknown range.
        DatasetError: a value that is NaN, infinite, or out of its range by more than rounding.
    """
    check_choice("layout", layout, get_args(Layout))
    if value_range is not None:
        check_choice("value_range", value_range, get_args(ValueRange))
    tensor = _as_tensor(videos)
    said = f"videos are {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    if tensor.ndim != len(layout):
        raise UsageError(f"{said}; layout {layout} has {len(layout)} axes")
    tensor = tensor.unsqueeze(-1) if layout == "NTHW" else tensor.permute(*_TO_FRAMES[layout])
    if tensor.shape[-1] not in CHANNELS:
        raise UsageError(
            f"{said}: in layout {layout} it would have {tensor.shape[-1]} channels, and videos "
            "have 3 (RGB) or 1 (gray); say which axis is which with layout="
        )
    if not tensor.shape[1]:
        raise UsageError(f"{said}: no frames")
    check_size(tensor.shape[2], tensor.shape[3], said)
    if tensor.dtype == torch.uint8:
        return tensor.expand(*tensor.shape[:-1], 3)
    if not tensor.is_floating_point():
        raise UsageError(f"{said}; they must be uint8 or floats")
    if value_range is None:
        raise UsageError(f"{said}; say the range of floats with value_range= {_spoken()}")
    return _scale(tensor, value_range).expand(*tensor.shape[:-1], 3)


def _as_tensor(videos: "np.ndarray | torch.Tensor") -> torch.Tensor:
    if isinstance(videos, np.ndarray):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of arrays that are read-only: nothing is written
                return torch.from_numpy(videos)
        except (TypeError, ValueError):  # types and strides that tensors have not
            raise UsageError(
                f"videos are {videos.dtype} {videos.shape}; they must be uint8 or floats, in the "
                "machine's byte order, and without negative strides (numpy.ascontiguousarray)"
            ) from None
    if not isinstance(videos, torch.Tensor):
        raise UsageError(f"videos are {type(videos).__name__}; an array or a tensor is needed")
    return videos.detach()


def _scale(frames: torch.Tensor, value_range: ValueRange) -> torch.Tensor:
    """To float32 in 0..255; what rounding put beyond the ends is cut off."""
    low, high = BOUNDS[value_range]
    if frames.dtype != torch.float64:  # as of arrays in files
        frames = frames.float()
    slack = TOLERANCE * (high - low)
    good = (frames >= low - slack) & (frames <= high + slack)  # NaN is neither
    if not bool(good.all()):
        video, frame, *_ = place = tuple(torch.nonzero(~good)[0].tolist())
        value = frames[place].item()
        raise DatasetError(
            f"videos[{video}], frame {frame} has the value {value:g}, which is not in "
            f"{value_range}; say the right one with value_range= {_spoken()}"
        )
    frames = frames.clamp(low, high)
    if value_range == "-1..1":
        frames = (frames + 1) * 127.5
    elif value_range == "0..1":
        frames = frames * 255
    return frames.float()


def _spoken() -> str:
    return " or ".join(f'"{value}"' for value in get_args(ValueRange))
