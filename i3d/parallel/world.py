"""Which of how many processes this one is, and the little that they say to each other.

Jobs share work by rank and world size alone. Where one process must have what the others found, it
is gathered once, at the end.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from i3d.errors import I3DError, UsageError

# (rank, world size, processes on this node, number on this node) as each launcher exports them,
# the most specific first: torchrun inside a Slurm job sees both, and its processes do the work.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    "MPICH, Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    "MVAPICH": (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
    ),
    # Slurm binds a task to its own cores, which is what the process sees as available.
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "", "SLURM_LOCALID"),
}
# How long one process waits for the slowest. A process that ends is noticed at once; this is for
# machines that vanish without closing their connections.
PATIENCE = timedelta(hours=3)
CONNECTING = timedelta(minutes=5)
# Of a process that only sees the others' files; jobs take three times their slowest piece where
# that is longer. Launchers end all processes when one fails; this is for those that do not.
PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 2.0  # between two looks at a shared folder


class Bar(Protocol):
    """A progress display (`i3d.console`)."""

    def update(self, position: float, *, total: float | None = None, note: str = "") -> None:
        """Move to ``position``."""


@dataclass(frozen=True)
class World:
    """This process's number among the processes of a job.

    Attributes:
        rank: 0 to size - 1.
        size: number of processes.
        local_size: processes that share this node's cores, as far as the launcher says.
        local_rank: this process's number among those of its node, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's: a contiguous part, equal to within one."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def turns(self, count: int) -> range:
        """The same in turns: rank, rank + size, ..., so that neighbours go to different ones."""
        return range(self.rank, count, self.size)

    def title(self, what: str) -> str:
        """What is done, and by how many, for a progress bar."""
        return what if self.size == 1 else f"{what} (process {self.rank} of {self.size})"


def world_from_environment(environment: Mapping[str, str] | None = None) -> World:
    """Rank and world size under ``torchrun``, ``mpiexec`` or ``srun``; a world of one elsewhere.

    A shell inside ``salloc`` or ``sbatch`` (no ``srun``) is one process: Slurm sets
    ``SLURM_STEP_ID`` for the processes that it launches, and only they count.

    Raises:
        UsageError: a launcher's variables are not a rank below a world size.
    """
    environment = os.environ if environment is None else environment
    for launcher, (rank_name, size_name, local_name, number_name) in LAUNCHERS.items():
        if rank_name not in environment or size_name not in environment:
            continue
        if launcher == "Slurm" and "SLURM_STEP_ID" not in environment:
            continue
        rank, size = environment[rank_name], environment[size_name]
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise UsageError(
                f"{rank_name}={rank} and {size_name}={size} ({launcher}) are no rank of a world; "
                "unset them to run as one process"
            )
        local = environment.get(local_name, "1")
        local_size = int(local) if local.isdecimal() else 1
        local_size = min(max(local_size, 1), int(size))
        number = environment.get(number_name, "")
        local_rank = int(number) if number.isdecimal() else int(rank) % local_size
        return World(int(rank), int(size), local_size, local_rank)
    return World()


def await_others(
    count_done: Callable[[], int], total: int, *, patience_seconds: float, bar: Bar
) -> bool:
    """Wait until the other processes have done their parts, as far as a shared folder shows it.

    For jobs whose processes say nothing to each other: one that died is noticed only by a folder
    that changes no more.

    Args:
        count_done: what is done, of all processes.
        total: what will be there in the end.
        patience_seconds: how long to wait for the next change.
        bar: shows how far all of them are.

    Returns:
        Whether all is done.
    """
    done, changed = count_done(), time.monotonic()
    while done < total:
        bar.update(done, note="other processes are at work")
        if time.monotonic() - changed > patience_seconds:
            return False
        time.sleep(min(LOOK_SECONDS, patience_seconds / 2))
        before, done = done, count_done()
        if done != before:
            changed = time.monotonic()
    bar.update(done)
    return True


class Group:
    """The processes of a world, connected; a world of one needs no connection."""

    def __init__(self, world: World, process_group: Any = None) -> None:
        self.world = world
        self._process_group = process_group

    def gather(self, data: bytes) -> list[bytes]:
        """Give process 0 what each process has, in the order of the ranks; the others get [].

        Waits for the slowest.

        Raises:
            I3DError: another process has ended.
        """
        world = self.world
        if world.size == 1:
            return [data]
        import torch
        import torch.distributed as dist

        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
        try:
            dist.all_gather(sizes, torch.tensor([len(data)]), group=self._process_group)
            # Gloo gathers tensors of one size.
            padded = bytearray(data.ljust(max(int(size) for size in sizes), b"\0"))
            mine = torch.frombuffer(padded, dtype=torch.uint8)
            parts = [torch.empty_like(mine) for _ in range(world.size)] if world.first else None
            dist.gather(mine, parts, dst=0, group=self._process_group)
        except RuntimeError as error:
            raise I3DError(
                f"process {world.rank} of {world.size} lost another one, which ended before its "
                f"work was done; its own message says why ({str(error).splitlines()[0]})"
            ) from error
        return [
            part[: int(size)].numpy().tobytes()
            for part, size in zip(parts or (), sizes, strict=False)
        ]


@contextmanager
def connect(world: World) -> Iterator[Group]:
    """Let the processes of a world find each other, through ``MASTER_ADDR`` and ``MASTER_PORT``.

    torchrun sets these two; on one node they have defaults. A world of one does nothing; processes
    that are connected already, as in training, stay so.

    Raises:
        UsageError: the processes are on several nodes and were not told where the first one is.
        I3DError: they do not find each other.
    """
    if world.size == 1:
        yield Group(world)
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield Group(world, dist.new_group(backend="gloo", timeout=PATIENCE))
        return
    if "MASTER_ADDR" not in os.environ and world.local_size < world.size:
        raise UsageError(
            f"{world.size} processes do not know where the first of them is; set MASTER_ADDR to "
            "its host and MASTER_PORT to a free port in all of them, or start them with torchrun"
        )
    # What the launchers other than torchrun leave unset.
    host = os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    port = os.environ.setdefault("MASTER_PORT", "29500")
    try:
        dist.init_process_group("gloo", rank=world.rank, world_size=world.size, timeout=CONNECTING)
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise I3DError(
            f"process {world.rank} of {world.size} cannot join the others at {host}:{port} "
            f"({str(error).splitlines()[0]})"
        ) from error
    try:
        yield Group(world, group)
    finally:
        dist.destroy_process_group()
