"""Decoded frame -> uint8 (H, W, 3) RGB: colour, orientation, size."""

from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from i3d.errors import VideoError

MAX_SIDE = 16384  # pixels a side, before and after resizing; 8K is 7680
MAX_PIXELS = 2**26  # pixels a frame, 8192 x 8192: 200 MB of RGB

# FFmpeg's AVColorSpace tag -> matrix. Any other tag on a YUV frame, "unspecified" too, is BT.601.
MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


class PictureMaker:
    """Turns the frames of one video into pictures of one size.

    Args:
        name: the video's, for errors.
        short_side: pixels of the shorter side of the pictures; None: the first frame's size.

    Attributes:
        source_size: (height, width) of the first frame after rotation; None before `fit`.
    """

    def __init__(self, name: str, short_side: int | None) -> None:
        self.source_size: tuple[int, int] | None = None
        self._name = name
        self._short_side = short_side
        self._size = (0, 0)
        self._orientation = (False, False, False)
        self._reformatter = VideoReformatter()
        self._newest: tuple[av.VideoFrame, np.ndarray] | None = None

    def fit(self, first: av.VideoFrame) -> None:
        """Derive the orientation and size of every picture from the first decoded frame."""
        check_size(self._name, first.width, first.height)
        self._orientation = _orientation(first)
        turned = self._orientation[0]
        height, width = (first.width, first.height) if turned else (first.height, first.width)
        self.source_size = (height, width)
        self._size = scale_size(self._name, height, width, self._short_side)

    def make(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as it is put out: uint8 (H, W, 3), RGB; made once however often shown."""
        if self._newest is None or self._newest[0] is not frame:
            rgb = resize(_upright(self._rgb(frame), self._orientation), self._size)
            self._newest = (frame, rgb)
        return self._newest[1]

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert to uint8 (h, w, 3) RGB at the source's size, by the frame's colour tags."""
        check_size(self._name, frame.width, frame.height)
        matrix = colour_range = None  # RGB, palettes and gray have neither
        if len(frame.format.components) >= 3 and not frame.format.is_rgb:
            full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
            matrix = MATRICES.get(int(frame.colorspace), Colorspace.ITU601)
            colour_range = ColorRange.JPEG if full else ColorRange.MPEG
        try:
            rgb = self._reformatter.reformat(
                frame,
                format="rgb24",
                src_colorspace=matrix,
                src_color_range=colour_range,
                dst_color_range=ColorRange.JPEG,
                threads=1,
            )
        except av.FFmpegError as error:
            raise VideoError(
                f"cannot convert {self._name}'s pixel format {frame.format.name} to RGB: {error}"
            ) from error
        return np.ascontiguousarray(rgb.to_ndarray())


def scale_size(name: str, height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) of pictures whose shorter side is to be ``short_side``; None: as it is.

    Raises:
        VideoError: they would be too large.
    """
    scale = Fraction(short_side or min(height, width), min(height, width))
    size = (round(height * scale), round(width * scale))
    if max(size) > MAX_SIDE:
        raise VideoError(
            f"{name} has frames of {width}x{height}; with a short side of "
            f"{short_side} they would be over {MAX_SIDE} pixels wide or high"
        )
    return size


def resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) at another (height, width), bilinear; itself where it has that."""
    if rgb.shape[:2] == size:
        return rgb
    return cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_LINEAR)


def check_size(name: str, width: int, height: int) -> None:
    """Raise a VideoError for frames that would take too much memory."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise VideoError(
            f"{name} has frames of {width}x{height}; at most {MAX_SIDE} pixels a side "
            f"and {MAX_PIXELS} in all are read; scale it down first"
        )


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """The display matrix as: transpose, then mirror left-right, then mirror top-bottom.

    The matrix takes a stored pixel to (x', y') = (a x + c y, b x + d y). Angles between quarter
    turns go to the nearer one. Asked of the first frame alone: PyAV's list of side data refers to
    its frame, which then lives until the next garbage collection (at 1080p that held 500 MB).
    """
    for side_data in frame.side_data:
        if side_data.type == SideDataType.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5].tolist()
            transpose = abs(b) + abs(c) > abs(a) + abs(d)
            return (True, c < 0, b < 0) if transpose else (False, a < 0, d < 0)
    return (False, False, False)


def _upright(rgb: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """Apply what `_orientation` found to the pixels."""
    transpose, mirror_x, mirror_y = orientation
    if transpose:
        rgb = rgb.transpose(1, 0, 2)
    if mirror_x:
        rgb = rgb[:, ::-1]
    if mirror_y:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)
