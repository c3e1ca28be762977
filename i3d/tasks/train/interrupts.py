"""How a run ends before its time: asked to, or because another process did."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch.distributed as dist

from i3d.errors import I3DError
from i3d.parallel.world import World


class Stop:
    """Whether the user or the scheduler asked to stop.

    Attributes:
        requested: whether Ctrl-C or SIGTERM came; training looks after every step.
        at_once: whether to raise KeyboardInterrupt instead, where there is nothing to finish.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """The first signal asks, the second one insists."""
        if self.at_once or self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM finish the step; outside the main thread they do what they did."""
    stop = Stop()
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop.handle)
    except ValueError:  # not the main thread: a library caller's business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def others_may_die(world: World) -> Iterator[None]:
    """Turn what a connection raises whose other end is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().partition("\n")[0]
        connection = isinstance(error, dist.DistError) or "gloo" in text.lower()
        if world.size == 1 or not connection:
            raise
        raise I3DError(
            f"process {world.rank} of {world.size} lost another one, which ended before its work "
            f"was done; its own message says why ({text})"
        ) from error
