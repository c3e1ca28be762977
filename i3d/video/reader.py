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

import contextlib
import errno
import io
import math
import os
import shutil
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from types import TracebackType
from typing import IO, Any, Self

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Discard, Disposition
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from i3d import files
from i3d.errors import StorageError, UsageError, VideoError
from i3d.presets import KINETICS_I3D

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

MAX_SIDE = 16384  # pixels a side, before and after resizing; 8K is 7680
MAX_PIXELS = 2**26  # pixels a frame, 8192 x 8192: 200 MB of RGB
MAX_HOLD_SECONDS = 60  # a longer gap between two frames is a damaged time stamp, and is closed
MAX_STEP_SECONDS = 1  # from frame to frame, where only the stream's average rate tells
AVI_CHUNK_HEADER = 8  # bytes before a packet's data, where its index entry points
MAX_READ_FAILURES = 100  # in a row, before the rest of a damaged file is given up
SEEK_MARGINS_SECONDS = (0, 2, 20)  # how far before the window to look for its key frame
# Plain integers, though mypy takes an enumeration's value for the enumeration itself.
GENERATE_PTS: int = av.container.Flags.gen_pts.value  # type: ignore[assignment]
MAY_RESTART: int = av.format.Flags.ts_discont.value  # type: ignore[assignment]
READ_BYTES = 1 << 18  # asked of the file at a time
MIN_ROWS = 64  # frames by which read_video's array grows at least

# FFmpeg's AVColorSpace tag -> matrix. Any other tag on a YUV frame, "unspecified" too, is BT.601.
MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


class DamagedVideoWarning(UserWarning):
    """A video was decoded, but not all of it: frames were lost or a damaged gap was closed."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header claims; None where it does not say.

    Attributes:
        name: the path, URL or a description of the object.
        container: FFmpeg's name of the container format, e.g. ``matroska,webm``.
        codec: FFmpeg's name of the codec, e.g. ``h264``.
        width: pixels of the stored frames, before any rotation.
        height: pixels of the stored frames, before any rotation.
        fps: average frames a second.
        frames: number of frames.
        duration_seconds: of the video stream, else of the whole file.
    """

    name: str
    container: str
    codec: str
    width: int
    height: int
    fps: float | None
    frames: int | None
    duration_seconds: float | None


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
        info: what the header claims.
        source_size: (height, width) of the first frame after rotation; None before it is decoded.
        decoded_frames: number of frames decoded, from the key frame before the window on.
        lost_frames: number of packets of these that gave no frame, where the stream is damaged.
            Those that a damaged Matroska or MPEG-TS file's own structure hides are not among them:
            these files have no list of their packets. The frame before is then held over the gap.
        damaged_frames: number of frames decoded with errors, as far as the decoder says so.
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
        self._start = _exact("start_seconds", start_seconds)
        self._every_frame = fps is None
        if fps is None and (start_seconds or end_seconds is not None):
            raise UsageError("fps=None puts out every frame of the file; leave the window out")
        self._fps = _exact("fps", 1 if fps is None else fps)
        if self._fps <= 0 or (short_side is not None and short_side < 1) or threads < 1:
            raise UsageError(
                f"fps={fps}, short_side={short_side} and threads={threads} must be positive"
            )
        self._limit: int | None = None  # output frames of the window
        if end_seconds is not None:
            end = _exact("end_seconds", end_seconds)
            if end <= self._start:
                raise UsageError(
                    f"end_seconds={end_seconds} is not after start_seconds={start_seconds}"
                )
            self._limit = max(1, round(self._fps * (end - self._start)))
        self._short_side = short_side
        self._threads = threads

        self.source_size: tuple[int, int] | None = None
        self.decoded_frames = 0
        self.damaged_frames = 0
        self.closed_gaps = 0
        self.duration_seconds: float | None = None
        self._packets = 0
        self._damaged = False
        self._missing = 0
        self._iterated = False
        self._output_size = (0, 0)
        self._orientation = (False, False, False)
        self._reformatter = VideoReformatter()
        self._converted: tuple[av.VideoFrame, np.ndarray] | None = None

        self._file = _SourceFile(source)
        try:
            self._open()
            self.info = self._describe()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, unless it is the caller's file object."""
        self._container.close()
        self._file.close()

    @property
    def name(self) -> str:
        """The path, URL or a description of the object."""
        return self._file.label

    @property
    def source_fps(self) -> float | None:
        """Average frames a second that the header claims."""
        return self.info.fps

    @property
    def lost_frames(self) -> int:
        """Number of packets that gave no frame; 0 for a stream without a sign of damage.

        The sign is needed because sound streams too have packets without a frame of their own:
        VP8's hidden reference frames, second fields.
        """
        if not self._damaged and not self.damaged_frames:
            return 0
        return max(0, self._packets - self.decoded_frames) + self._missing

    @property
    def damage(self) -> str | None:
        """One line for the user on what was lost, or None."""
        losses = []
        if self.lost_frames:
            total = self.lost_frames + self.decoded_frames
            losses.append(f"{self.lost_frames} of {total} frames could not be decoded")
        if self.damaged_frames:
            losses.append(f"{self.damaged_frames} frames were decoded with errors")
        if self.closed_gaps:
            losses.append(f"{self.closed_gaps} jumps of the time stamps were closed")
        return f"{self.name}: {', '.join(losses)}" if losses else None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._iterated:
            raise UsageError(f"{self.name} was read already; open another VideoReader")
        self._iterated = True
        if self._every_frame:
            return (self._picture(frame) for _, frame in self._stamp())
        return self._sample()

    # The steps, from the last to the first: output frames <- stamped frames <- frames <- packets.

    def _sample(self) -> Iterator[np.ndarray]:
        """Put out the frames of the window, each when nothing that follows can change it.

        A decoded frame is shown from the first output index at or after its time stamp:

            decoded   a      b  c         d             (time stamps)
            output    0    1    2    3    4    5        at start + k / fps
            first     a: 0      b: 2 (replaced by c)  c: 2      d: 4

        so a is output 0 and 1, c is 2 and 3. That a frame of a later time has come does not settle
        k alone: the number of outputs is round(fps * duration), which may leave the last one out.
        """
        tick = self._time_base * self._fps  # in output frames
        limit = self._limit
        held: deque[tuple[int, av.VideoFrame]] = deque()  # (first index, frame), indices ascend
        k = 0  # the next output index
        end = Fraction(0)  # of the newest frame, in output frames
        for ticks, frame in self._stamp():
            position = ticks * tick - self._start * self._fps
            end = position + self._frame_ticks(frame) * tick
            first = max(0, math.ceil(position - tick / 2))
            if held and held[-1][0] >= first:
                held.pop()
            held.append((first, frame))
            settled = round(position) if limit is None else min(round(position), limit)
            while k < settled and len(held) > 1:
                if held[1][0] <= k:
                    held.popleft()
                else:
                    yield self._picture(held[0][1])
                    k += 1
            if limit is not None and k >= limit:
                self._drain()
                return

        duration = end / self._fps + self._start
        self.duration_seconds = float(duration)
        if duration <= self._start:
            raise VideoError(
                f"start_seconds={float(self._start):g} is past the end of {self.name}, "
                f"which lasts {float(duration):g} s"
            )
        total = max(1, round(end))
        for last in range(k, total if limit is None else min(total, limit)):
            while len(held) > 1 and held[1][0] <= last:
                held.popleft()
            yield self._picture(held[0][1])

    def _stamp(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Decoded frames with their time in ticks since the file's first one, never decreasing."""
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise VideoError(
                f"no frame of {self.name} could be decoded ({self.info.codec}, "
                f"{self._packets} packets); the file is damaged or cut short"
            )
        self._set_output_size(first)
        frames = chain([first], frames)
        if self._start > 0 and first.pts is not None and self._can_seek:
            window = self._seek(first.pts)
            if window is None:
                self._container.close()
                self._open()
                window = self._decode()
            frames = window
        clock = _Clock(
            _time_stamp(first), step=self._frame_step, hold=MAX_HOLD_SECONDS / self._time_base
        )
        for frame in frames:
            ticks = clock.read(frame)
            self.closed_gaps = clock.closed_gaps
            if ticks is not None:
                yield ticks, frame

    def _seek(self, origin: int) -> Iterator[av.VideoFrame] | None:
        """Decode from a key frame at or before the window; None: decode from the start instead.

        What makes the frames exactly those of decoding from the start: the first frame (``origin``
        is its time stamp) and these have presentation time stamps, which do not start again in the
        middle (as MPEG-TS may); the key frame's is not after the window's begin; frames that the
        decoder puts out before the key frame's time (an open group of pictures, whose references
        were not read) are dropped; and the index proves that there is no gap before the window
        that decoding from the start would close.
        """
        target = origin + math.floor(self._start / self._time_base)
        for margin in SEEK_MARGINS_SECONDS:
            aim = math.floor(target - margin / self._time_base)
            if aim <= origin:
                return None
            try:
                self._container.seek(aim, stream=self._stream)
            except (av.FFmpegError, OSError):
                return None
            if not self._index_is_dense(origin, target):
                return None
            frames = self._decode(from_key_frame=True)
            entry = next(frames, None)
            if entry is not None and entry.pts is not None and entry.pts <= target:
                return chain([entry], frames)
        return None

    def _index_is_dense(self, begin: int, end: int) -> bool:
        """Whether the container's index has no gap over MAX_HOLD_SECONDS between two stamps."""
        hold = MAX_HOLD_SECONDS / self._time_base
        stamps = (entry.timestamp for entry in self._stream.index_entries)
        known = [begin, *sorted(stamp for stamp in stamps if begin < stamp < end), end]
        return all(b - a <= hold for a, b in pairwise(known))

    def _decode(self, *, from_key_frame: bool = False) -> Iterator[av.VideoFrame]:
        """Decoded frames in the order of presentation, going on after packets that fail."""
        self.decoded_frames = self.damaged_frames = self._packets = self._missing = 0
        self._damaged = False
        entry: int | None = None  # time stamp of the key frame that decoding began at
        for packet in self._demux():
            if from_key_frame and entry is None:
                if not packet.is_keyframe:
                    continue
                if packet.pts is None:
                    return
                entry = packet.pts
            if packet.size:
                self._packets += not packet.is_discard
                self.damaged_frames += packet.is_corrupt
            try:
                frames = self._stream.codec_context.decode(packet)
            except av.FFmpegError:
                self._damaged |= packet.size > 0  # the last, empty packet asks for what is left
                continue
            self.decoded_frames += len(frames)
            for frame in frames:
                self.damaged_frames += frame.is_corrupt
                if entry is None or (frame.pts is not None and frame.pts >= entry):
                    yield frame

    def _demux(self) -> Iterator[av.Packet]:
        """The video stream's packets, going on after those that cannot be read."""
        failures = 0
        read = 0
        begin = 0  # where in the file the first packet lies
        indexed = len(self._stream.index_entries)
        while failures < MAX_READ_FAILURES:
            try:
                for packet in self._container.demux(self._stream):
                    self._file.check()
                    failures = 0
                    if not read and packet.pos is not None:
                        begin = packet.pos
                    read += packet.size > 0
                    yield packet
            except av.FFmpegError:
                self._file.check()
                self._damaged = True
                failures += 1
            except IndexError:
                break  # PyAV, after the last packet, where more streams appeared on the way
            except OSError as error:
                raise VideoError(f"cannot read {self.name}: {error}") from error
            else:
                break
        self._file.check()
        self._count_missing(begin, read, indexed)

    def _count_missing(self, begin: int, read: int, indexed: int) -> None:
        """Count the frames that the file's index or header names and that gave no packet.

        Those past the end of a file that was cut short, and AVI's whose chunk headers are damaged:
        its demuxer goes on at the next sound one without a word. (An AVI file ends with its index;
        where that is cut off, the demuxer adds to it what it reads.)

        Args:
            begin: position in the file of the first packet that was read.
            read: number of packets read from there to the end.
            indexed: number of the index's entries before.
        """
        avi = self.info.container == "avi"
        entries = [entry for entry in self._stream.index_entries if entry.size]
        size = self._file.size
        cut = size is not None and any(entry.pos + entry.size > size for entry in entries)
        if cut or avi:
            position = begin - AVI_CHUNK_HEADER if avi else begin
            self._missing = max(0, sum(entry.pos >= position for entry in entries) - read)
        if avi and len(self._stream.index_entries) > indexed:
            self._missing += max(0, self._stream.frames - len(self._stream.index_entries))
        self._damaged |= cut or self._missing > 0

    def _drain(self) -> None:
        """Count the frames still in the decoder at the window's end, so that none seems lost."""
        if self._damaged or self.damaged_frames:
            with contextlib.suppress(av.FFmpegError):
                self.decoded_frames += len(self._stream.codec_context.decode(None))

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as it is put out: uint8 (H, W, 3), RGB; converted once however often shown."""
        if self._converted is None or self._converted[0] is not frame:
            height, width = self._output_size
            rgb = _upright(self._rgb(frame), self._orientation)
            if rgb.shape[:2] != (height, width):
                rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
            self._converted = (frame, rgb)
        return self._converted[1]

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert to uint8 (h, w, 3) RGB at the source's size, by the frame's colour tags."""
        self._check_size(frame.width, frame.height)
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
                f"cannot convert {self.name}'s pixel format {frame.format.name} to RGB: {error}"
            ) from error
        return np.ascontiguousarray(rgb.to_ndarray())

    def _set_output_size(self, first: av.VideoFrame) -> None:
        """Derive the size of every output frame from the first decoded one."""
        self._check_size(first.width, first.height)
        self._orientation = _orientation(first)
        turned = self._orientation[0]
        height, width = (first.width, first.height) if turned else (first.height, first.width)
        self.source_size = (height, width)
        scale = Fraction(self._short_side or min(height, width), min(height, width))
        self._output_size = (round(height * scale), round(width * scale))
        if max(self._output_size) > MAX_SIDE:
            raise VideoError(
                f"{self.name} has frames of {width}x{height}; with a short side of "
                f"{self._short_side} they would be over {MAX_SIDE} pixels wide or high"
            )

    def _check_size(self, width: int, height: int) -> None:
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise VideoError(
                f"{self.name} has frames of {width}x{height}; at most {MAX_SIDE} pixels a side "
                f"and {MAX_PIXELS} in all are read; scale it down first"
            )

    def _frame_ticks(self, frame: av.VideoFrame) -> Fraction:
        """How long a frame is on show, in ticks: as stored, else by the average rate."""
        stored = Fraction(frame.duration or 0)
        return stored if 0 < stored <= MAX_HOLD_SECONDS / self._time_base else self._frame_step

    def _open(self) -> None:
        """Open, or open again, at the beginning of the file, and choose the video stream."""
        self._file.rewind()
        options = {
            "protocol_whitelist": "none",  # no file or address that the video itself names
            "max_pixels": str(MAX_PIXELS),
        }
        try:
            self._container = av.open(
                self._file,
                "r",
                options=options,
                metadata_errors="ignore",
                buffer_size=READ_BYTES,
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            self._file.check()
            raise VideoError(
                f"cannot read {self.name} as a video: it is damaged, cut short (an .mp4 without "
                f"its index) or not a video ({getattr(error, 'strerror', None) or error})"
            ) from error
        self._file.check()
        # FFmpeg's guess of missing presentation time stamps is wrong for AVI with B-frames.
        self._container.flags &= ~GENERATE_PTS

        pictures = self._container.streams.video
        videos = [s for s in pictures if not s.disposition & Disposition.attached_pic]
        if not videos:
            kinds = ", ".join(sorted({s.type for s in self._container.streams})) or "no streams"
            found = "only a cover picture" if pictures else f"only: {kinds}"
            raise VideoError(f"{self.name} has no video stream ({found}); give a video file")
        best = self._container.streams.best("video")
        self._stream = best if best in videos else videos[0]
        if self._stream.codec_context is None:
            raise VideoError(
                f"{self.name} is coded in a way that this FFmpeg cannot decode; convert it to H.264"
            )
        for stream in self._container.streams:
            if stream is not self._stream:
                stream.discard = Discard.all

        self._can_seek = self._file.seekable() and not self._container.format.flags & MAY_RESTART
        context = self._stream.codec_context
        self._check_size(context.width, context.height)
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_count = self._threads
        if self._threads > 1:
            context.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self._time_base = self._stream.time_base or 1 / rate
        step = min(1 / rate, Fraction(MAX_STEP_SECONDS))
        self._frame_step = step / self._time_base  # ticks from one frame to the next

    def _describe(self) -> VideoInfo:
        stream, container = self._stream, self._container
        if stream.duration is not None:
            duration = float(stream.duration * self._time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        else:
            duration = None
        return VideoInfo(
            name=self.name,
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            frames=stream.frames or None,
            duration_seconds=duration,
        )


class _Clock:
    """Ticks since the first frame, from time stamps that may be missing, jump or start again.

    Args:
        origin: the first frame's time stamp; None: the stream has none.
        step: ticks to a frame that has no time stamp of its own to go by.
        hold: ticks; a frame that comes later than this after the one before follows it at once.
    """

    def __init__(self, origin: int | None, *, step: Fraction, hold: Fraction) -> None:
        self.closed_gaps = 0
        self._origin = origin
        self._step = step
        self._hold = hold
        self._offset = Fraction(0)  # what closed gaps have added to the time stamps
        self._previous: Fraction | None = None
        self._newest_dts: int | None = None

    def read(self, frame: av.VideoFrame) -> Fraction | None:
        """The time of the next frame, never decreasing; None: it comes too late to be shown."""
        previous = self._previous
        stamp = _time_stamp(frame)
        if stamp is None or self._origin is None:
            ticks = Fraction(0) if previous is None else previous + self._step
        else:
            straight = Fraction(stamp - self._origin)
            if previous is None or 0 <= straight - previous <= self._hold:
                self._offset = Fraction(0)  # the stream's own clock fits, or fits again
            ticks = straight + self._offset
            restarted = self._restarted(frame)
            if previous is not None and not 0 <= ticks - previous <= self._hold:
                if ticks < previous and not restarted:
                    return None  # a damaged stream's decoder releases old frames between new ones
                ticks = previous + self._step
                self._offset = ticks - straight
                self._newest_dts = frame.dts
                self.closed_gaps += 1
        self._previous = ticks
        return ticks

    def _restarted(self, frame: av.VideoFrame) -> bool:
        """Whether the packets' times, which only ever increase in a sound stream, went back."""
        if frame.dts is None:
            return False
        if self._newest_dts is None or frame.dts > self._newest_dts:
            self._newest_dts = frame.dts
        return frame.dts < self._newest_dts


class _SourceFile:
    """The bytes of a video, as FFmpeg reads them: ``read``, ``seek``, ``tell``.

    There is no ``name``, so that the format is found from the content alone: FFmpeg would play any
    file called ``.txt`` as a film of its text.

    Errors (Ctrl-C included) are kept here and raised by :meth:`check`: an exception cannot travel
    through FFmpeg's C code, where it would look like the end of the file.
    """

    def __init__(self, source: Source) -> None:
        self._error: BaseException | None = None
        self._owned = True
        if isinstance(source, bytes | bytearray | memoryview):
            self.label = f"<{len(source)} bytes>"
            self._file: IO[bytes] = io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            self.label = os.fspath(source)
            self._file = _open_location(source)
        elif hasattr(source, "read"):
            name = getattr(source, "name", None)
            self.label = name if isinstance(name, str) else f"<{type(source).__name__}>"
            self._file = source
            self._owned = False
        else:
            raise UsageError(
                f"a video is a path, a URL, bytes or a binary file object, not {source!r}"
            )
        if type(self._file) in (io.BufferedReader, io.BytesIO):
            # Python delivers Ctrl-C where Python code begins to run, which must then not be a
            # function that FFmpeg calls; these files' own methods are C.
            self.read, self.seek = self._file.read, self._file.seek  # type: ignore  # in place of methods
        self.size = self._measure()
        if self.size == 0:
            self.close()
            raise VideoError(f"{self.label} is empty (0 bytes); download or copy it again")

    def _measure(self) -> int | None:
        """Size in bytes; None for what cannot seek."""
        if not self.seekable():
            return None
        try:
            return int(self._file.seek(0, os.SEEK_END))
        except Exception as error:
            self.close()
            raise VideoError(f"cannot read {self.label}: {error}") from error

    def seekable(self) -> bool:
        test = getattr(self._file, "seekable", None)
        return hasattr(self._file, "seek") if test is None else bool(test())

    def rewind(self) -> None:
        if self.seekable():
            self._file.seek(0)

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._file.read(size))
        except BaseException as error:
            self._error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1  # damaged files point outside of themselves
        except BaseException as error:
            self._error = error
            return -1

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        """Raise what went wrong while FFmpeg was reading."""
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, Exception):
            raise error
        if files.is_url(self.label):  # it was there when it was opened
            raise StorageError(f"cannot read {self.label}: {error}") from error
        remedy = "; open the file in binary mode" if isinstance(error, TypeError) else ""
        raise VideoError(f"cannot read {self.label}: {error}{remedy}") from error

    def close(self) -> None:
        if self._owned:
            self._file.close()


def _open_location(location: files.Location) -> IO[bytes]:
    """Open a path or URL for reading and seeking."""
    name = os.fspath(location)
    try:
        file = files.open_read(location)
        if not files.is_url(location):
            return file
        try:
            file.seek(0, os.SEEK_END)
            file.seek(0)
            return file
        except (OSError, ValueError):  # a server without byte ranges: keep a copy while it is read
            with file:
                copy = tempfile.TemporaryFile()  # noqa: SIM115 (its reader closes it)
                shutil.copyfileobj(file, copy)
            return copy
    except FileNotFoundError as error:
        raise VideoError(f"there is no file {name}") from error
    except IsADirectoryError as error:
        raise VideoError(f"{name} is a folder; give a video file") from error
    except Exception as error:  # fsspec's file systems raise errors of their own
        outage = isinstance(error, OSError) and not isinstance(error, PermissionError)
        odd_name = getattr(error, "errno", None) == errno.EINVAL
        if files.is_url(name) and outage and not odd_name:
            raise StorageError(f"cannot open {name}: {error or type(error).__name__}") from error
        raise VideoError(f"cannot open {name}: {error or type(error).__name__}") from error


def _exact(name: str, value: float) -> Fraction:
    """The number that was meant: 0.04 is 1/25 and 23.976023976 is 24000/1001."""
    try:
        exact = Fraction(value).limit_denominator(1_000_000)
    except (TypeError, ValueError, OverflowError):
        exact = Fraction(-1)
    if exact < 0:
        raise UsageError(f"{name}={value!r} must be a number of at least 0")
    return exact


def _time_stamp(frame: av.VideoFrame) -> int | None:
    """Presentation time stamp, else the decoding one of the packet that released the frame."""
    return frame.pts if frame.pts is not None else frame.dts


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
