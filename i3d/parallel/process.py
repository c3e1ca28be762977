"""What the processes of a job have in common: they share the cores, and end cleanly."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import Any

from i3d.parallel.world import World

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it: like Ctrl-C, but for the exit code."""


@contextmanager
def terminated_cleanly() -> Iterator[None]:
    """Treat SIGTERM, as schedulers send it, like Ctrl-C: remove what is half-written.

    Raises:
        Terminated: when it comes.
    """

    def interrupt(*_: object) -> None:
        raise Terminated

    with _handled(interrupt, [signal.SIGTERM]):
        yield


@contextmanager
def _handled(
    handler: Callable[[int, Any], None], numbers: Sequence[signal.Signals]
) -> Iterator[None]:
    """Handle signals for as long; outside the main thread that is a library caller's business."""
    previous = {}
    try:
        for number in numbers:
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, before in previous.items():
            # None: a handler that was not Python's, which Python cannot set again
            signal.signal(number, signal.SIG_DFL if before is None else before)


def end_interrupted() -> None:
    """What an interrupted process does last: end its workers, and be interrupted no more.

    Python gives shared semaphores back before it ends the workers, and one that was still starting
    would print that it finds none.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for worker in multiprocessing.active_children():
        worker.kill()


@contextmanager
def workers_start() -> Iterator[None]:
    """Start processes that do not see Ctrl-C and SIGTERM before they can, nor half of them.

    Ctrl-C reaches the whole process group, and some schedulers' SIGTERM too. A worker inherits that
    both are blocked, from before its first line of Python, where it would print a traceback; it
    unblocks SIGTERM when it begins to work (`begin_work`). This process, which ends its workers,
    has to know all of them: what comes in the meantime is raised at the end of the block.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)

    try:
        with _handled(note, SIGNALS), _blocked():
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _blocked() -> Iterator[None]:
    """Block both signals in this thread, which is what a new process inherits."""
    _start_tracker()  # else the first worker's start does, which unblocks both signals here
    # Not instead of the handler: other threads of this process may take the signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def begin_work() -> None:
    """What a worker does first: it ends by SIGTERM and with its parent, and not by Ctrl-C."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def start_fork_server(modules: Sequence[str]) -> multiprocessing.context.ForkServerContext:
    """Start the process that worker processes are forked from, unless it is there.

    Neither Ctrl-C nor SIGTERM, which terminals and some schedulers send to all processes, reaches
    it: it ends with this one, which may have a worker to start before it ends.

    Args:
        modules: names of what it imports once for all workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    with _blocked():
        forkserver.ensure_running()
    return context


def _start_tracker() -> None:
    """Start Python's process that gives back what killed ones leave; it does so without a word."""
    sys.warnoptions.append("ignore:resource_tracker")  # its command line gets them
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove("ignore:resource_tracker")


def count_cores(world: World) -> int:
    """Cores that this process may run on, shared with the others on its node."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // world.local_size)


def share_cores(device: str, world: World) -> int:
    """The cores of this process; on a CPU, PyTorch is told to use them.

    torchrun sets OMP_NUM_THREADS=1, with which the network would idle all cores but one.
    """
    import torch  # precompute needs this module, and no torch

    share = count_cores(world)
    if device == "cpu" and world.size > 1:
        torch.set_num_threads(share)
    return share


def choose_workers(asked: int | None, device: str, world: World, *, decodes: bool) -> int:
    """Processes that read for a network, of this process.

    Args:
        asked: as the user said it; None: its share of the cores, at most two where the network
            needs them itself.
        device: where the network computes.
        world: says how many processes share the node.
        decodes: whether reading is work: decoding video, or computing flow.
    """
    share = share_cores(device, world)
    if asked is not None:
        return asked
    return share if device != "cpu" or decodes else min(share, 2)


def end_with_parent() -> None:
    """End this worker when the process that asked for it ends, even by ``kill -9``.

    A killed process cannot end its workers, and a worker whose parent is a fork server would go on
    for ever: each keeps the other alive.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
