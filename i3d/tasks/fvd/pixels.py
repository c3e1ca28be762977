"""Frames -> a protocol's clip: which frames, the resize, the crop."""

import math

import numpy as np

from i3d.errors import DatasetError, UsageError
from i3d.tasks.fvd.protocols import Protocol
from i3d.video import MAX_PIXELS, MAX_SIDE


def resize_bilinear(
    frames: np.ndarray, height: int, width: int, *, half_pixel: bool, box: tuple[slice, slice]
) -> np.ndarray:
    """Part of bilinearly resized frames, without antialiasing: float32 (T, h, w, 3).

    With ``half_pixel`` the source of output pixel i is at ``(i + 0.5) * in / out - 0.5``, as in
    PyTorch; without, at ``i * in / out``, as TF1's ``resize_bilinear`` has it, which shifts the
    picture towards the first pixel. Beyond the border the outermost pixel is repeated.

    Args:
        frames: uint8 (T, H, W, 3).
        height: pixels of the whole result.
        width: pixels of the whole result.
        half_pixel: see above.
        box: rows and columns of the result that are computed.
    """
    top, bottom, down = _taps(frames.shape[1], height, half_pixel, box[0])
    left, right, across = _taps(frames.shape[2], width, half_pixel, box[1])
    across = across[:, None]  # (w, 1), beside the channels

    def line(rows: np.ndarray) -> np.ndarray:
        start = frames[:, rows[:, None], left].astype(np.float32)
        start += (frames[:, rows[:, None], right] - start) * across
        return start

    upper = line(top)
    upper += (line(bottom) - upper) * down[:, None, None]
    return upper


def _taps(
    size: int, out: int, half_pixel: bool, part: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every output pixel its two source pixels and the second one's weight, in float32."""
    positions = np.arange(out, dtype=np.float32)[part]
    scale = np.float32(size) / np.float32(out)
    if half_pixel:
        half = np.float32(0.5)
        positions = np.maximum((positions + half) * scale - half, np.float32(0))
    else:
        positions = positions * scale
    first = np.minimum(np.floor(positions).astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), positions - first.astype(np.float32)


def protocol_frames(frames: np.ndarray, protocol: Protocol) -> np.ndarray:
    """The part of a video that a protocol looks at: every stride-th frame from the first.

    Raises:
        DatasetError: the video is too short.
    """
    if len(frames) < protocol.frames_needed:
        raise DatasetError(
            f"{len(frames)} frames; {protocol.frames} with stride {protocol.stride} need "
            f"{protocol.frames_needed}"
        )
    return frames[: protocol.frames_needed : protocol.stride]


def protocol_clip(frames: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Resize and crop as the protocol does: uint8 (T, H, W, 3) -> float32 (T, size, size, 3).

    Values stay 0..255; nothing is rounded.
    """
    size, whole = protocol.size, slice(0, protocol.size)
    height, width = frames.shape[1:3]
    half_pixel = protocol.resize == "half-pixel"
    if protocol.fit == "squash":
        return resize_bilinear(frames, size, size, half_pixel=half_pixel, box=(whole, whole))
    # VideoGPT's rounding: the long side up, in floats; where a side is the short one, it is exact.
    scale = size / min(height, width)
    tall = size if height < width else math.ceil(height * scale)
    wide = math.ceil(width * scale) if height < width else size
    top, left = (tall - size) // 2, (wide - size) // 2
    box = slice(top, top + size), slice(left, left + size)
    return resize_bilinear(frames, tall, wide, half_pixel=half_pixel, box=box)


def check_videos(videos: np.ndarray, what: str) -> None:
    """Refuse what is not uint8 (N, T, H, W, 3).

    Raises:
        UsageError: another type or shape.
    """
    if videos.ndim != 5 or videos.shape[-1] != 3 or videos.dtype != np.uint8:
        raise UsageError(
            f"{what} is {videos.dtype} {videos.shape}; videos are uint8 (N, T, H, W, 3), RGB, and "
            "features float (N, D)"
        )
    _, frames, height, width, _ = videos.shape
    if not frames or not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise UsageError(f"{what} has shape {videos.shape}: nothing to look at, or too large")
    if height * width > MAX_PIXELS:
        raise UsageError(f"{what} has frames of {width}x{height}; at most {MAX_PIXELS} pixels")
