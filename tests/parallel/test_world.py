"""The launchers' environments."""

import time

import pytest

from i3d.errors import UsageError
from i3d.parallel import world as world_module
from i3d.parallel.world import World, await_others, world_from_environment


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, World(3, 8)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, World(3, 8, 4, 3)),
        (
            {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"},
            World(6, 8, local_size=4, local_rank=1),
        ),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, World(1, 2)),
        ({"PMI_RANK": "5", "PMI_SIZE": "6"}, World(5, 6)),
        ({"SLURM_PROCID": "7", "SLURM_NTASKS": "16", "SLURM_STEP_ID": "0"}, World(7, 16)),
        (
            {"SLURM_PROCID": "7", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "3"},
            World(7, 8, local_rank=3),
        ),
        # a batch script's own shell, which srun did not launch
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, World(0, 1)),
        # torchrun started by srun
        (
            {"RANK": "9", "WORLD_SIZE": "32", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"},
            World(9, 32),
        ),
        ({"RANK": "3"}, World(0, 1)),
    ],
)
def test_rank_and_world_of_each_launcher(environment, world):
    assert world_from_environment(environment) == world


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "0")])
def test_nonsense_is_refused(rank, size):
    with pytest.raises(UsageError, match=f"RANK={rank}"):
        world_from_environment({"RANK": rank, "WORLD_SIZE": size})


def test_shares_of_the_work():
    worlds = [World(rank, 4) for rank in range(4)]
    assert [list(world.turns(6)) for world in worlds] == [[0, 4], [1, 5], [2], [3]]
    assert [list(world.share(6)) for world in worlds] == [[0], [1, 2], [3], [4, 5]]


class Bar:
    """What the bar was told."""

    def __init__(self):
        self.positions = []

    def update(self, position, *, total=None, note=""):
        self.positions.append(position)


def test_waiting_for_the_others(monkeypatch):
    monkeypatch.setattr(world_module, "LOOK_SECONDS", 0.001)
    bar, counts = Bar(), iter([1, 1, 2, 2, 4])
    assert await_others(lambda: next(counts), 4, patience_seconds=60, bar=bar)
    assert bar.positions == [1, 1, 2, 2, 4]


def test_others_that_do_nothing_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(world_module, "LOOK_SECONDS", 0.001)
    counts = iter([1, *[2] * 1000])
    start = time.monotonic()
    assert not await_others(lambda: next(counts), 4, patience_seconds=0.05, bar=Bar())
    assert time.monotonic() - start < 30
