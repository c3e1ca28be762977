"""Reading ahead: a thread decodes while the caller works on earlier frames.

Decoding and resizing are C that runs without Python's lock, so that a thread is enough.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Self

import numpy as np

from i3d.errors import UsageError
from i3d.video.reader import VideoReader
from i3d.video.source import Source

AHEAD_FRAMES = 64  # in memory beside the caller's: 22 MB at 256 x 455 pixels
_NICE = 10  # what the caller works on comes first: the first window of a video is there 7 % sooner
_LEAVE_SECONDS = 0.5  # that whoever leaves in a hurry waits for the thread
_LOOK_SECONDS = 0.1  # how often a thread with nothing to do looks whether it is still wanted


class AheadReader:
    """A video's frames, in order, of which a thread reads the next ones.

    The file is opened by the thread, too: what is wrong with it is raised where its frames are
    asked for. Iterate once.

    Args:
        source: as `VideoReader` takes it.
        end_seconds, fps, short_side: as `VideoReader` takes them.

    Attributes:
        source, end_seconds, fps, short_side: what was given.
    """

    def __init__(
        self, source: Source, *, end_seconds: float | None, fps: float, short_side: int
    ) -> None:
        self.source = source
        self.end_seconds, self.fps, self.short_side = end_seconds, fps, short_side
        self._reader: VideoReader | None = None
        self._queue: Queue[np.ndarray | BaseException | None] = Queue(AHEAD_FRAMES)
        self._iterated = self._ended = False
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="i3d-decode", daemon=True)
        self._thread.start()

    @property
    def reader(self) -> VideoReader:
        """What is read, as soon as a frame is there."""
        assert self._reader is not None
        return self._reader

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._iterated or self._closed.is_set():
            raise UsageError("this video was read already; open it again")
        self._iterated = True
        return self._take()

    def _take(self) -> Iterator[np.ndarray]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self, *, wait: bool = True) -> None:
        """Stop reading, and close the file.

        Args:
            wait: until the thread has ended. One that waits for a server may take a minute; without
                it, that thread closes the file when it ends.
        """
        self._closed.set()
        with suppress(Empty):  # the thread may wait for room
            while True:
                self._queue.get_nowait()
        self._thread.join(None if wait else _LEAVE_SECONDS)
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close(wait=kind is None)

    def _run(self) -> None:
        try:
            self._read()
        finally:
            self._ended = True
            self._finish()

    def _finish(self) -> None:
        """Close the file, where the thread has ended and nobody asks any more."""
        with self._lock:
            if self._ended and self._closed.is_set() and self._reader is not None:
                self._reader.close()

    def _read(self) -> None:
        try:
            if sys.platform == "linux":  # where threads have priorities of their own
                thread = threading.get_native_id()
                with suppress(OSError):
                    nice = max(_NICE, os.getpriority(os.PRIO_PROCESS, thread))
                    os.setpriority(os.PRIO_PROCESS, thread, nice)
            self._reader = VideoReader(
                self.source,
                end_seconds=self.end_seconds,
                fps=self.fps,
                short_side=self.short_side,
            )
            for frame in self._reader:
                if not self._put(frame):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: np.ndarray | BaseException | None) -> bool:
        """Hand an item over; False where nobody wants it any more."""
        while not self._closed.is_set():
            with suppress(Full):
                self._queue.put(item, timeout=_LOOK_SECONDS)
                return True
        return False
