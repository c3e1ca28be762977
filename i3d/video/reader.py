"""Video file, URL or bytes -> frames: uint8 (T, H, W, 3) RGB at 25 fps, short side 256.

Decoding is FFmpeg's, through PyAV. What happens to a frame, in this order:

1. Time stamps: a frame's presentation time stamp, else (AVI) its decoding time stamp, which is when
   the decoder hands it out, else (raw streams) one frame after the one before. Counted from the
   file's first decoded frame.
2. Sampling: output frame k is the decoded frame on show ``start_seconds + k / fps`` after the first
   one, tolerating half a time-stamp tick, for k below ``round(fps * duration)``, at least one.
3. Colour: to 8-bit RGB at the source's size by the matrix and range that the frame is tagged with
   (untagged: BT.601, limited; yuvj formats: full), with FFmpeg's default conversion, which cv2 and
   PyAV use too. Transparency is dropped, HDR is not tone-mapped, fields are not deinterlaced.
4. Orientation: the first frame's display matrix (quarter turns and mirrors) is applied to all.
5. Size: the short side becomes 256 and the long side ``round(long * 256 / short)``, with cv2's
   INTER_LINEAR; pixel aspect ratio is ignored. Where the size changes within the stream, every
   frame gets the first one's output size.

Only frames that are put out are converted and resized, each once. With ``fps=None`` step 2 is left
out, and every decoded frame is put out once; with ``short_side=None``, step 5.
"""

import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from typing import Self

import av
import numpy as np

from i3d.errors import UsageError, VideoError
from i3d.presets import KINETICS_I3D
from i3d.video.clock import Clock, Sampler, Window
from i3d.video.decoder import Decoder, VideoInfo
from i3d.video.picture import PictureMaker
from i3d.video.source import Source, SourceFile

MIN_ROWS = 64  # frames by which read_video's array grows at least


class DamagedVideoWarning(UserWarning):
    """A video was decoded, but not all of it: frames were lost or a damaged gap was closed."""


def read_video(
    source: Source,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    fps: float | None = KINETICS_I3D.fps,
    short_side: int | None = KINETICS_I3D.short_side,
    threads: int = 1,
) -> np.ndarray:
    """Read a video, or the window of it from ``start_seconds`` to ``end_seconds``.

    Args: as :class:`VideoReader`.

    Returns:
        uint8 (T, H, W, 3), RGB, with ``T = round(fps * seconds)``, at least 1; with ``fps=None``
        as many as were decoded.

    Raises:
        VideoError: the source cannot be opened or decoded, or ends before ``start_seconds``.
        StorageError: a URL's server fails.
        UsageError: an argument makes no sense.

    Warns:
        DamagedVideoWarning: once, with the number of frames that were lost.
    """
    with VideoReader(
        source,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        fps=fps,
        short_side=short_side,
        threads=threads,
    ) as reader:
        # The array grows in place (realloc moves pages, not bytes), so the peak is the result.
        frames = np.empty((0, 0, 0, 3), np.uint8)
        count = 0
        for frame in reader:
            if count == 0:
                frames = np.empty((MIN_ROWS, *frame.shape), np.uint8)
            elif count == len(frames):
                frames.resize((count + max(MIN_ROWS, count // 4), *frame.shape), refcheck=False)
            frames[count] = frame
            count += 1
        frames.resize((count, *frames.shape[1:]), refcheck=False)
        if reader.damage:
            warnings.warn(DamagedVideoWarning(reader.damage), stacklevel=2)
    return frames


def probe_video(source: Source) -> VideoInfo:
    """What a video's header claims, without decoding it.

    Raises:
        VideoError: the source cannot be opened or holds no video.
    """
    with VideoReader(source) as reader:
        return reader.info


class VideoReader:
    """Reads a video as a stream of sampled, resized frames, in constant memory.

    Iterate once; each frame is uint8 (H, W, 3), RGB. A frame that is shown again (a source under 25
    fps) is the same array again, so copy before changing one.

        with VideoReader("two_hours.mkv", start_seconds=3600, end_seconds=3610) as reader:
            for frame in reader:
                ...
        print(reader.lost_frames)

    A window is found by seeking where the container has an index of key frames, and gives exactly
    the frames that decoding from the start gives (a file with damage before the window apart).
    Everything else (MPEG-TS, raw streams, AVI with B-frames, pipes) is decoded from the start.

    A packet that cannot be decoded is skipped and counted, and reading goes on. A time stamp over
    60 s after the one before is taken for damage: the frame then follows at once, so that a single
    wrong number cannot ask for hours of a still picture.

    FFmpeg is given bytes, never a name, and may open nothing by itself: a playlist that points at
    other files or addresses is refused.

    Args:
        source: path, URL that fsspec understands, bytes, or a binary file object, which is read
            from its beginning and left open.
        start_seconds: beginning of the window, counted from the file's first frame.
        end_seconds: end of the window; None: to the end of the file.
        fps: output frames a second; None: every decoded frame once, whatever its time, and no
            window.
        short_side: pixels of the shorter side of the output; None: the first frame's size.
        threads: decoder threads. With 1 the frames of a damaged file are the same on every machine.
            (cv2.resize uses OpenCV's own pool; workers call ``cv2.setNumThreads``.)

    Attributes:
        name: the path, URL or a description of the object.
        info: what the header claims.
        closed_gaps: number of time stamps that jumped and were taken for damage.
        duration_seconds: exact, from the first frame to the end of the last; None until the end
            of the file was decoded, and with ``fps=None``.

    Raises:
        VideoError: the source cannot be opened or decoded, or ends before ``start_seconds``.
        StorageError: a URL's server fails.
        UsageError: an argument makes no sense, or the reader is iterated a second time.
    """

    def __init__(
        self,
        source: Source,
        *,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        fps: float | None = KINETICS_I3D.fps,
        short_side: int | None = KINETICS_I3D.short_side,
        threads: int = 1,
    ) -> None:
        self._every_frame = fps is None
        if fps is None and (start_seconds or end_seconds is not None):
            raise UsageError("fps=None puts out every frame of the file; leave the window out")
        self._window = Window.between(start_seconds, end_seconds, 1 if fps is None else fps)
        if self._window.fps <= 0 or (short_side is not None and short_side < 1) or threads < 1:
            raise UsageError(
                f"fps={fps}, short_side={short_side} and threads={threads} must be positive"
            )
        self._threads = threads
        self._iterated = False
        self.closed_gaps = 0
        self.duration_seconds: float | None = None

        self._file = SourceFile(source)
        self.name = self._file.label
        self._pictures = PictureMaker(self.name, short_side)
        try:
            self._decoder = Decoder(self._file, threads=threads)
        except BaseException:
            self._file.close()
            raise
        self.info = self._decoder.info

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, unless it is the caller's file object."""
        self._decoder.close()
        self._file.close()

    @property
    def source_fps(self) -> float | None:
        """Average frames a second that the header claims."""
        return self.info.fps

    @property
    def source_size(self) -> tuple[int, int] | None:
        """(height, width) of the first frame after rotation; None before it is decoded."""
        return self._pictures.source_size

    @property
    def decoded_frames(self) -> int:
        """Number of frames decoded, from the key frame before the window on."""
        return self._decoder.decoded_frames

    @property
    def lost_frames(self) -> int:
        """Number of packets of the decoded part that gave no frame, where the stream is damaged.

        Those that a damaged Matroska or MPEG-TS file's own structure hides are not among them:
        these files have no list of their packets. The frame before is then held over the gap.
        """
        return self._decoder.lost_frames

    @property
    def damaged_frames(self) -> int:
        """Number of frames decoded with errors, as far as the decoder says so."""
        return self._decoder.damaged_frames

    @property
    def damage(self) -> str | None:
        """One line for the user on what was lost of the decoded part, or None.

        That the file was cut short is said where its container tells (see `i3d.video.ending`), it
        can be read from any place and was decoded to its end.
        """
        losses = [] if self._decoder.cut is None else [self._decoder.cut]
        if self.lost_frames:
            total = self.lost_frames + self.decoded_frames
            losses.append(f"{self.lost_frames} of {total} frames could not be decoded")
        if self.damaged_frames:
            losses.append(f"{self.damaged_frames} frames were decoded with errors")
        if self.closed_gaps:
            losses.append(f"{self.closed_gaps} jumps of the time stamps were closed")
        return f"{self.name}: {', '.join(losses)}" if losses else None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._every_frame:
            return (self._pictures.make(frame) for frame in self._take_all())
        if self._iterated:
            raise UsageError(f"{self.name} was read already; open another VideoReader")
        self._iterated = True
        return self._sample()

    def read_numbers(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """The decoded frames of these numbers, in place of iterating; with ``fps=None`` alone.

        Only they are converted and resized, and nothing after the last is decoded.

        Args:
            numbers: counted from the file's first frame, none smaller than the one before; the
                same number again gives the same array again.

        Returns:
            uint8 (H, W, 3) each; fewer than asked for where the video ends before.

        Raises:
            UsageError: iterated a second time, or ``fps`` is not None.
            VideoError: nothing can be decoded.
        """
        wanted = iter(numbers)
        number = next(wanted, None)
        for i, frame in enumerate(self._take_all()):
            picture = None
            while number == i:
                picture = self._pictures.make(frame) if picture is None else picture
                yield picture
                number = next(wanted, None)
            if number is None:
                return

    def count_frames(self) -> int:
        """Decode to the end, in place of iterating: the number of frames; with ``fps=None`` alone.

        Raises:
            UsageError: iterated a second time, or ``fps`` is not None.
            VideoError: nothing can be decoded.
        """
        return sum(1 for _ in self._take_all())

    def _take_all(self) -> Iterator[av.VideoFrame]:
        """Every decoded frame, unconverted."""
        if not self._every_frame:
            raise UsageError("frames have numbers with fps=None alone")
        if self._iterated:
            raise UsageError(f"{self.name} was read already; open another VideoReader")
        self._iterated = True
        return (frame for _, _, frame in self._stamp())

    def _sample(self) -> Iterator[np.ndarray]:
        """The pictures of the window."""
        sampler: Sampler[av.VideoFrame] = Sampler(self._window, tick=self._decoder.time_base)
        for begin, end, frame in self._stamp():
            for shown in sampler.add(begin, end, frame):
                yield self._pictures.make(shown)
            if sampler.full:
                self._decoder.drain()
                return

        start, self.duration_seconds = self._window.start, float(sampler.end)
        if sampler.end <= start:
            cut = "" if self._decoder.cut is None else f"; {self._decoder.cut}"
            raise VideoError(
                f"start_seconds={float(start):g} is past the end of {self.name}, "
                f"which lasts {self.duration_seconds:g} s{cut}"
            )
        for shown in sampler.finish():
            yield self._pictures.make(shown)

    def _stamp(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Decoded frames after their begin and end in seconds since the file's first one."""
        frames = self._decoder.decode()
        first = next(frames, None)
        if first is None:
            raise VideoError(
                f"no frame of {self.name} could be decoded ({self.info.codec}, "
                f"{self._decoder.packets} packets); the file is damaged or cut short"
            )
        self._pictures.fit(first)
        frames = chain([first], frames)
        if self._window.start > 0 and first.pts is not None and self._decoder.can_seek:
            window = self._decoder.seek(first.pts, self._window.start)
            if window is None:
                self._decoder.close()
                self._decoder = Decoder(self._file, threads=self._threads)
                window = self._decoder.decode()
            frames = window
        clock = Clock(first, tick=self._decoder.time_base, step=self._decoder.frame_step)
        for frame in frames:
            shown = clock.read(frame)
            self.closed_gaps = clock.closed_gaps
            if shown is not None:
                yield *shown, frame
