"""The bytes of a video -> decoded frames in the order of presentation; what is lost is counted."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise

import av
from av.stream import Discard, Disposition

from i3d.errors import VideoError
from i3d.video.clock import MAX_HOLD_SECONDS
from i3d.video.ending import HEAD_BYTES, find_cut
from i3d.video.picture import MAX_PIXELS, check_size
from i3d.video.source import SourceFile

MAX_STEP_SECONDS = 1  # from frame to frame, where only the stream's average rate tells
AVI_CHUNK_HEADER = 8  # bytes before a packet's data, where its index entry points
MAX_READ_FAILURES = 100  # in a row, before the rest of a damaged file is given up
SEEK_MARGINS_SECONDS = (0, 2, 20)  # how far before the window to look for its key frame
# Plain integers, though mypy takes an enumeration's value for the enumeration itself.
GENERATE_PTS: int = av.container.Flags.gen_pts.value  # type: ignore[assignment]
MAY_RESTART: int = av.format.Flags.ts_discont.value  # type: ignore[assignment]
READ_BYTES = 1 << 18  # asked of the file at a time


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header claims; None where it does not say.

    Attributes:
        name: the path, URL or a description of the object.
        container: FFmpeg's name of the format, e.g. ``matroska,webm``.
        codec: FFmpeg's name, e.g. ``h264``.
        width: pixels of the stored frames, before any rotation.
        height: pixels of the stored frames, before any rotation.
        fps: average frames a second.
        frames: number of them in the whole stream.
        duration_seconds: length of the video stream, else of the whole file.
    """

    name: str
    container: str
    codec: str
    width: int
    height: int
    fps: float | None
    frames: int | None
    duration_seconds: float | None


class Decoder:
    """A file's video stream, opened at its beginning.

    Args:
        file: what to read, from its beginning; it is left open.
        threads: number that the decoder may use.

    Attributes:
        info: what the header claims.
        can_seek: whether a window may be found by seeking.
        time_base: seconds of one tick of the time stamps.
        frame_step: ticks from one frame to the next by the average rate.
        packets: number read since decoding last began.
        decoded_frames: number of frames that these gave.
        damaged_frames: number of frames decoded with errors, as far as the decoder says so.
        cut: what shows that the file was cut short, once its end was decoded, or None.

    Raises:
        VideoError: the file is no video, or one that is too large.
        StorageError: a URL's server fails.
    """

    def __init__(self, file: SourceFile, *, threads: int) -> None:
        self._file = file
        self._head = file.peek(0, HEAD_BYTES) if file.size else b""
        self._container = _open_container(file)
        self._stream = _choose_stream(self._container, file.label)
        context = self._stream.codec_context
        check_size(file.label, context.width, context.height)
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_count = threads
        if threads > 1:
            context.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        step = min(1 / rate, Fraction(MAX_STEP_SECONDS))
        self.time_base = self._stream.time_base or 1 / rate
        self.frame_step = step / self.time_base
        self.can_seek = file.seekable() and not self._container.format.flags & MAY_RESTART
        self.info = self._describe()
        self._reset_counts()

    def _describe(self) -> VideoInfo:
        stream, container = self._stream, self._container
        if stream.duration is not None:
            duration = float(stream.duration * self.time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        else:
            duration = None
        return VideoInfo(
            name=self._file.label,
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            frames=stream.frames or None,
            duration_seconds=duration,
        )

    def close(self) -> None:
        """Give back FFmpeg's memory."""
        self._container.close()

    @property
    def lost_frames(self) -> int:
        """Number of packets that gave no frame; 0 for a stream without a sign of damage.

        The sign is needed because sound streams too have packets without a frame of their own:
        VP8's hidden reference frames, second fields.
        """
        if not self._damaged and not self.damaged_frames:
            return 0
        return max(0, self.packets - self.decoded_frames) + self._missing

    def _reset_counts(self) -> None:
        self.packets = self.decoded_frames = self.damaged_frames = self._missing = 0
        self._damaged = False
        self.cut: str | None = None

    def seek(self, origin: int, start_seconds: Fraction) -> Iterator[av.VideoFrame] | None:
        """Decode from a key frame at or before a window; None: decode from the start instead.

        What makes the frames exactly those of decoding from the start: the first frame (``origin``
        is its time stamp) and these have presentation time stamps, which do not start again in the
        middle (as MPEG-TS may); the key frame's is not after the window's begin; frames that the
        decoder puts out before the key frame's time (an open group of pictures, whose references
        were not read) are dropped; and the index proves that there is no gap before the window
        that decoding from the start would close.
        """
        target = origin + math.floor(start_seconds / self.time_base)
        for margin in SEEK_MARGINS_SECONDS:
            aim = math.floor(target - margin / self.time_base)
            if aim <= origin:
                return None
            try:
                self._container.seek(aim, stream=self._stream)
            except (av.FFmpegError, OSError):
                return None
            if not self._index_is_dense(origin, target):
                return None
            frames = self.decode(from_key_frame=True)
            entry = next(frames, None)
            if entry is not None and entry.pts is not None and entry.pts <= target:
                return chain([entry], frames)
        return None

    def _index_is_dense(self, begin: int, end: int) -> bool:
        """Whether the container's index has no gap over MAX_HOLD_SECONDS between two stamps."""
        hold = MAX_HOLD_SECONDS / self.time_base
        stamps = (entry.timestamp for entry in self._stream.index_entries)
        known = [begin, *sorted(stamp for stamp in stamps if begin < stamp < end), end]
        return all(b - a <= hold for a, b in pairwise(known))

    def decode(self, *, from_key_frame: bool = False) -> Iterator[av.VideoFrame]:
        """Decoded frames in the order of presentation, going on after packets that fail.

        Args:
            from_key_frame: drop what comes before the next key frame and its time.
        """
        self._reset_counts()
        entry: int | None = None  # time stamp of the key frame that decoding began at
        for packet in self._demux():
            if from_key_frame and entry is None:
                if not packet.is_keyframe:
                    continue
                if packet.pts is None:
                    return
                entry = packet.pts
            if packet.size:
                self.packets += not packet.is_discard
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

    def drain(self) -> None:
        """Count the frames still in the decoder at a window's end, so that none seems lost."""
        if self._damaged or self.damaged_frames:
            with contextlib.suppress(av.FFmpegError):
                self.decoded_frames += len(self._stream.codec_context.decode(None))

    def _demux(self) -> Iterator[av.Packet]:
        """The video stream's packets, going on after those that cannot be read."""
        failures = 0
        read = 0
        begin = 0  # where in the file the first packet lies
        last: int | None = None  # and the last
        indexed = len(self._stream.index_entries)
        while failures < MAX_READ_FAILURES:
            try:
                for packet in self._container.demux(self._stream):
                    self._file.check()
                    failures = 0
                    if packet.pos is not None:
                        begin = begin if read else packet.pos
                        last = packet.pos
                    read += packet.size > 0
                    yield packet
            except av.FFmpegError:
                self._file.check()
                self._damaged = True
                failures += 1
            except IndexError:
                break  # PyAV, after the last packet, where more streams appeared on the way
            except OSError as error:
                raise VideoError(f"cannot read {self._file.label}: {error}") from error
            else:
                break
        self._file.check()
        self._count_missing(begin, read, indexed)
        self.cut = find_cut(self._file, self._head, self._container, last)

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


def _is_page(file: SourceFile) -> bool:
    """Whether a file begins as HTML does, as what a site sends in a video's place."""
    if not file.seekable():
        return False
    start = file.peek(0, 256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))


def _open_container(file: SourceFile) -> av.container.InputContainer:
    file.rewind()
    options = {
        "protocol_whitelist": "none",  # no file or address that the video itself names
        "max_pixels": str(MAX_PIXELS),
    }
    try:
        container = av.open(
            file, "r", options=options, metadata_errors="ignore", buffer_size=READ_BYTES
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        file.check()
        if _is_page(file):
            raise VideoError(
                f"{file.label} is a web page, not a video; give the address of the video's file "
                "itself, or download it"
            ) from error
        raise VideoError(
            f"cannot read {file.label} as a video: it is damaged, cut short (an .mp4 without "
            f"its index) or not a video ({getattr(error, 'strerror', None) or error})"
        ) from error
    file.check()
    # FFmpeg's guess of missing presentation time stamps is wrong for AVI with B-frames.
    container.flags &= ~GENERATE_PTS
    return container


def _choose_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The video to decode; all other streams are skipped."""
    pictures = container.streams.video
    videos = [s for s in pictures if not s.disposition & Disposition.attached_pic]
    if not videos:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
        found = "only a cover picture" if pictures else f"only: {kinds}"
        raise VideoError(f"{name} has no video stream ({found}); give a video file")
    best = container.streams.best("video")
    chosen = best if best in videos else videos[0]
    if chosen.codec_context is None:
        raise VideoError(
            f"{name} is coded in a way that this FFmpeg cannot decode; convert it to H.264, "
            "or copy it again if it was cut short"
        )
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    return chosen
