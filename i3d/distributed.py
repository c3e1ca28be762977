"""Which of how many processes this one is, from the environment of the usual launchers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from i3d.errors import UsageError

# (rank, world size, processes on this node) as each launcher exports them, the most specific
# first: torchrun inside a Slurm job sees both, and it is torchrun's processes that work.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH, Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    # Slurm binds a task to its own cores, which is what the process sees as available.
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", ""),
}


@dataclass(frozen=True)
class World:
    """This process's number among the processes of a job.

    Attributes:
        rank: 0 to size - 1.
        size: number of processes.
        local_size: processes that share this node's cores, as far as the launcher says.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1


def world_from_environment(environment: Mapping[str, str] | None = None) -> World:
    """Rank and world size under ``torchrun``, ``mpiexec`` or ``srun``; a world of one elsewhere.

    A shell inside ``salloc`` or ``sbatch`` (no ``srun``) is one process: Slurm sets
    ``SLURM_STEP_ID`` for the processes that it launches, and only they count.

    Raises:
        UsageError: a launcher's variables are not a rank below a world size.
    """
    environment = os.environ if environment is None else environment
    for launcher, (rank_name, size_name, local_name) in LAUNCHERS.items():
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
        return World(int(rank), int(size), local_size=min(max(local_size, 1), int(size)))
    return World()
