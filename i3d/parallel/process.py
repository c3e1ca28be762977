"""What the processes of a job have in common: they share the cores, and end cleanly."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import Any

from i3d.parallel.world import World


@contextmanager
def terminated_cleanly() -> Iterator[None]:
    """Treat SIGTERM, as schedulers send it, like Ctrl-C: remove what is half-written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: a library caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block.

    For the start of worker processes: those whose parent ends before they have begun complain of it
    at length. Outside the main thread, which is not interrupted, it does nothing.
    """
    came: list[int] = []
    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda got, _: came.append(got))
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for waited, handler in previous.items():
            signal.signal(waited, handler)
    if came:
        signal.raise_signal(came[0])


def start_fork_server(modules: Sequence[str]) -> multiprocessing.context.ForkServerContext:
    """Start the process that worker processes are forked from, unless it is there.

    Ctrl-C, which a terminal sends to all processes, does not reach it while it imports.

    Args:
        modules: names of what it imports once for all workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # first: it unblocks Ctrl-C in this thread
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))  # its children inherit it
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


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
