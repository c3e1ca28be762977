"""Which frame is on show when: time stamps -> exact seconds -> output frames at a constant rate."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Self, TypeVar

import av

from i3d.errors import UsageError

MAX_HOLD_SECONDS = 60  # a longer gap between two frames is a damaged time stamp, and is closed

Frame = TypeVar("Frame")


@dataclass(frozen=True)
class Window:
    """Output frame k is what is on show ``start + k / fps`` seconds after the first frame.

    Attributes:
        fps: output frames a second.
        start: seconds from the file's first frame.
        limit: number of output frames; None: to the end of the file.
    """

    fps: Fraction
    start: Fraction
    limit: int | None

    @classmethod
    def between(cls, start_seconds: float, end_seconds: float | None, fps: float) -> Self:
        """The window from ``start_seconds`` to ``end_seconds``; None: to the end of the file.

        Raises:
            UsageError: a number is negative or none, or the end is not after the start.
        """
        start, rate = exact("start_seconds", start_seconds), exact("fps", fps)
        if end_seconds is None:
            return cls(rate, start, None)
        end = exact("end_seconds", end_seconds)
        if end <= start:
            raise UsageError(
                f"end_seconds={end_seconds} is not after start_seconds={start_seconds}"
            )
        return cls(rate, start, max(1, round(rate * (end - start))))


def exact(name: str, value: float) -> Fraction:
    """The number that was meant: 0.04 is 1/25 and 23.976023976 is 24000/1001."""
    try:
        number = Fraction(value).limit_denominator(1_000_000)
    except (TypeError, ValueError, OverflowError):
        number = Fraction(-1)
    if number < 0:
        raise UsageError(f"{name}={value!r} must be a number of at least 0")
    return number


class Sampler(Generic[Frame]):
    """Chooses the frames of a window, each when nothing that follows can change it.

    A decoded frame is shown from the first output index at or after its time stamp:

        decoded   a      b  c         d             (time stamps)
        output    0    1    2    3    4    5        at start + k / fps
        first     a: 0      b: 2 (replaced by c)  c: 2      d: 4

    so a is output 0 and 1, c is 2 and 3. That a frame of a later time has come does not settle
    k alone: the number of outputs is round(fps * duration), which may leave the last one out.

    Args:
        window: what is to be put out.
        tick: seconds of one unit of the time stamps, half of which is tolerated.

    Attributes:
        end: seconds from the file's first frame to the end of the newest.
    """

    def __init__(self, window: Window, *, tick: Fraction) -> None:
        self.end = window.start
        self._window = window
        self._tolerance = tick / 2 * window.fps  # in output frames
        self._held: deque[tuple[int, Frame]] = deque()  # (first index, frame), indices ascend
        self._next = 0  # output index

    @property
    def full(self) -> bool:
        """Whether all of the window was put out."""
        return self._window.limit is not None and self._next >= self._window.limit

    def add(self, begin: Fraction, end: Fraction, frame: Frame) -> Iterator[Frame]:
        """Take the next frame, on show from ``begin`` to ``end`` seconds; what it settles."""
        self.end = end
        position = self._position(begin)
        first = max(0, math.ceil(position - self._tolerance))
        if self._held and self._held[-1][0] >= first:
            self._held.pop()
        self._held.append((first, frame))
        settled = self._limited(round(position))
        while self._next < settled and len(self._held) > 1:
            if self._held[1][0] <= self._next:
                self._held.popleft()
            else:
                yield self._held[0][1]
                self._next += 1

    def finish(self) -> Iterator[Frame]:
        """Put out the rest after the file's last frame."""
        for last in range(self._next, self._limited(max(1, round(self._position(self.end))))):
            while len(self._held) > 1 and self._held[1][0] <= last:
                self._held.popleft()
            yield self._held[0][1]

    def _position(self, seconds: Fraction) -> Fraction:
        """A time in output frames."""
        return (seconds - self._window.start) * self._window.fps

    def _limited(self, count: int) -> int:
        return count if self._window.limit is None else min(count, self._window.limit)


class Clock:
    """Seconds since the first frame, from time stamps that may be missing, jump or start again.

    Args:
        first: the file's first frame.
        tick: seconds of one unit of the time stamps.
        step: ticks to a frame that has no time stamp of its own to go by.

    Attributes:
        closed_gaps: number of time stamps that jumped and were taken for damage.
    """

    def __init__(self, first: av.VideoFrame, *, tick: Fraction, step: Fraction) -> None:
        self.closed_gaps = 0
        self._origin = _time_stamp(first)
        self._tick = tick
        self._step = step
        self._hold = MAX_HOLD_SECONDS / tick  # a frame later than this follows the last at once
        self._offset = Fraction(0)  # what closed gaps have added to the time stamps
        self._previous: Fraction | None = None
        self._newest_dts: int | None = None

    def read(self, frame: av.VideoFrame) -> tuple[Fraction, Fraction] | None:
        """Begin and end of the next frame's show in seconds; None: it comes too late for one.

        The begin never decreases. The end is as stored, else by the step.
        """
        ticks = self._read_ticks(frame)
        if ticks is None:
            return None
        stored = Fraction(frame.duration or 0)
        length = stored if 0 < stored <= self._hold else self._step
        return ticks * self._tick, (ticks + length) * self._tick

    def _read_ticks(self, frame: av.VideoFrame) -> Fraction | None:
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


def _time_stamp(frame: av.VideoFrame) -> int | None:
    """Presentation time stamp, else the decoding one of the packet that released the frame."""
    return frame.pts if frame.pts is not None else frame.dts
