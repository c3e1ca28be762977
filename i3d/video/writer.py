"""Pictures -> an .mp4 file that browsers play: H.264, half the colour resolution."""

import os
from contextlib import suppress
from fractions import Fraction
from types import TracebackType
from typing import IO

import av
import numpy as np
from av.video.reformatter import Colorspace

from i3d.errors import UsageError

_BT601 = 6  # FFmpeg's tag of the matrix that RGB is turned into YUV with


class Mp4Writer:
    """An .mp4 file, picture by picture: what is in memory does not grow with its length.

        with Mp4Writer(path, width=340, height=256, fps=25) as video:
            video.write(frame)

    The same pictures give the same bytes with the same FFmpeg. A file with a name has its table of
    contents in front, so that a browser plays it before all of it has come.

    Args:
        file: a path, or a file object that can seek.
        width, height: of every picture, pixels; even.
        fps: pictures a second.

    Raises:
        UsageError: an odd size.
        OSError: the file cannot be written.
    """

    def __init__(
        self, file: str | os.PathLike[str] | IO[bytes], *, width: int, height: int, fps: int
    ) -> None:
        if width % 2 or height % 2:
            raise UsageError(
                f"frames of {width}x{height} pixels: H.264 takes even sizes; crop a row"
            )
        flags = {}
        if isinstance(file, str | os.PathLike):
            file = os.fspath(file)
            # A second pass, for which FFmpeg opens the file by its name: others have none.
            flags["movflags"] = "faststart"
        self._container = av.open(file, "w", format="mp4", container_options=flags)
        # The bytes would depend on the number of threads and, with x264's macroblock tree, on what
        # was in memory before.
        options = {"crf": "20", "preset": "veryfast", "mbtree": "0"}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.thread_count = 1
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.colorspace = _BT601  # or a large picture's would be guessed
        self._time_base = Fraction(1, fps)
        self._count = 0

    def write(self, picture: np.ndarray) -> None:
        """Add a picture: uint8 (height, width, 3), RGB."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)
        frame.pts, frame.time_base = self._count, self._time_base
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(OSError):  # what is written so far is no whole file
            self._container.close()
