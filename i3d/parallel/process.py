"""What the processes of a job have in common: they share the cores, and end cleanly."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from i3d.errors import UsageError
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


def checked_workers(workers: int | None, world: World) -> int:
    """The number of workers asked for, or the default.

    Raises:
        UsageError: it is not at least 1.
    """
    if workers is None:
        return default_workers(world)
    if workers < 1:
        raise UsageError(f"workers {workers}: there must be at least 1")
    return workers


def default_workers(world: World) -> int:
    """The cores that this process may run on, shared with the others on its node."""
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

    share = default_workers(world)
    if device == "cpu" and world.size > 1:
        torch.set_num_threads(share)
    return share


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
