"""Reading ahead: worker processes bring a dataset's items while the network works on earlier ones.

PyTorch's DataLoader does the work. What it lacks is here: workers that end with their parent,
errors that say what to do, and a look at the shared memory before it is too small.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from i3d.errors import DatasetError, I3DError, UsageError, VideoError
from i3d.parallel.process import begin_work, start_fork_server, workers_start

if TYPE_CHECKING:
    import torch

PREFETCH = 2  # items that each worker has ready or at work
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Item:
    """What a worker read: arrays and what is to be said of them, or why there are none.

    Attributes:
        index: number that was asked for.
        tensors: name -> array in shared memory, pinned for CUDA.
        about: the rest; None without.
        error: reason why it cannot be used, where its data are at fault.
        fatal: what ends the job, for it is not the data's fault.
    """

    index: int
    tensors: "dict[str, torch.Tensor]" = field(default_factory=dict)
    about: Any = None
    error: str | None = None
    fatal: Exception | None = None

    def pin_memory(self) -> "Item":
        """Called by PyTorch's loader, so that copies to the GPU overlap with its work."""
        self.tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return self


# number -> arrays by name, and what is to be said of them
Read = Callable[[int], tuple[Mapping[str, np.ndarray], Any]]


class _Items:
    """What a worker process runs, as PyTorch's loader wants it."""

    def __init__(self, read: Read, indices: Sequence[int], names: Sequence[str]) -> None:
        self.read, self.indices, self.names = read, tuple(indices), names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Item:
        import torch

        i = self.indices[position]
        try:
            arrays, about = self.read(i)
        except (DatasetError, VideoError) as error:
            return Item(i, error=str(error))
        except (I3DError, OSError) as error:
            return Item(i, fatal=error)
        except MemoryError as error:
            return Item(i, fatal=out_of_memory(self.names[i] if self.names else f"item {i}", error))
        tensors = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}
        return Item(i, tensors, about)


def out_of_memory(name: str, error: MemoryError) -> I3DError:
    """What is said of a thing that did not fit into the memory while it was read."""
    text = f" ({error})" if str(error) else ""
    return I3DError(f"{name}: memory ran out while it was read{text}; use fewer --workers")


class _Parcel:
    """An item on its way from a worker.

    It is pickled before PyTorch's queue gets it. The queue would do that in a thread, whose errors
    (no shared memory or file descriptor is left) nobody hears: the job would wait for ever.
    """

    def __init__(self, item: Any) -> None:
        self._data, self._error = b"", ""
        try:
            self._data = bytes(ForkingPickler.dumps(item))
        except Exception as error:  # PyTorch's are RuntimeErrors, but for those of the system
            self._error = _reason(error)

    def open(self) -> Any:
        """The item.

        Raises:
            I3DError: it could not be sent or received.
        """
        reason = self._error
        try:
            if not reason:
                return ForkingPickler.loads(self._data)
        except Exception as error:  # of the worker's end of the connection, which may be gone
            reason = _reason(error)
        raise I3DError(
            f"a worker process cannot hand over what it read, or died ({reason}); if it was for "
            "lack of memory or open files, use fewer --workers, or raise ulimit -f, -n and -v"
        )

    def pin_memory(self) -> Any:
        """Called by PyTorch's loader in a thread; what fails there, fails again in `open`."""
        try:
            item = self.open()
        except I3DError as error:
            self._error = str(error)
            return self
        return item.pin_memory()


def _reason(error: BaseException) -> str:
    """The first line of an error."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def read_items(
    read: Read,
    indices: Sequence[int],
    *,
    workers: int,
    pin: bool = False,
    names: Sequence[str] = (),
) -> Iterator[Item]:
    """Items in the order of ``indices``, each read once.

    Args:
        read: picklable; raises a DatasetError or VideoError for data that cannot be used.
        indices: what it is called with.
        workers: processes that read ahead, `PREFETCH` items each; 0 reads in this one.
        pin: put the tensors into page-locked memory, for CUDA.
        names: what messages call the items, by their numbers.

    Raises:
        I3DError: what is not the data's fault, or a worker died.
    """
    return read_ahead(_Items(read, indices, names), workers=min(workers, len(indices)), pin=pin)


def read_ahead(dataset: Any, *, workers: int, pin: bool) -> Iterator[Any]:
    """What a dataset of PyTorch's gives, read by worker processes.

    Args:
        dataset: picklable; its items have ``fatal``, what ends the job, or None.
        workers: processes that read ahead, `PREFETCH` items each; 0 reads in this one.
        pin: put tensors into page-locked memory, for CUDA.

    Raises:
        I3DError: an item's ``fatal``, or a worker died.
    """
    import torch
    from torch.utils.data import DataLoader

    options: dict[str, Any] = {}
    if workers:
        # Not fork: HDFS clients, CUDA and OpenMP do not survive it. The server imports torch once
        # for all workers, which make their sockets below this process's temporary folder: it
        # removes that at its end, where those of killed workers would stay.
        util.get_temp_dir()
        options = {
            "multiprocessing_context": start_fork_server(
                ["torch.utils.data", type(dataset).__module__]
            ),
            "prefetch_factor": PREFETCH,
            "worker_init_fn": _start_worker,
        }
    loader: Any = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_Parcel if workers else _pass_on,
        pin_memory=pin,
        generator=torch.Generator(),  # for the workers' seeds; the caller's numbers stay his
        **options,
    )
    with workers_start() if workers else nullcontext():
        items = iter(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:  # all that PyTorch says of a worker that is gone
            if not str(error).startswith("DataLoader worker"):
                raise
            raise I3DError(
                f"a worker process that reads videos died ({_reason(error)}); if it was for lack "
                "of memory, use fewer --workers"
            ) from error
        if isinstance(item, _Parcel):
            item = item.open()
        if item.fatal is not None:
            raise item.fatal
        yield item


def check_shared_memory(item_bytes: int, *, workers: int, processes: int = 1) -> None:
    """Refuse to begin where workers would die of a full /dev/shm, as in a default container.

    Args:
        item_bytes: size of what a worker hands over at a time, at most.
        workers: number of each process.
        processes: number that share the memory.

    Raises:
        UsageError: says how much there is and is needed, and what to do.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return
    each = item_bytes * processes * PREFETCH  # by the number of workers
    needed, free = each * workers, shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise UsageError(
            f"{workers * processes} workers need {needed >> 20} MiB of shared memory and "
            f"{SHARED_MEMORY} has {free >> 20} MiB free; give the container more (--shm-size, or "
            f"an emptyDir at {SHARED_MEMORY}) or pass --workers {free // each}"
        )


def _start_worker(_: int) -> None:
    """One thread a worker: they share the cores with each other and with the model."""
    import cv2

    begin_work()
    cv2.setNumThreads(1)
    os.environ["NUMBA_NUM_THREADS"] = "1"


def _pass_on(item: Any) -> Any:
    return item
