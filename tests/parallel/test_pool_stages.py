"""The worker pool with stages: order, files, and workers that die in a later stage."""

import signal

import pytest
from support.pool_work import begin, end, middle

from i3d.parallel.pool import Died, Failed, Result, Stage, WorkerPool


@pytest.fixture(scope="module")
def pool():
    stages = (Stage(middle, own=1, together=3), Stage(end))
    with WorkerPool(begin, workers=2, then=stages) as pool:
        yield pool


def run(pool, fates, path=""):
    tasks = [(number, fate, str(path)) for number, fate in enumerate(fates)]
    return [outcome for _, outcome in pool.map(tasks, ahead=8)]


def test_results_pass_through_all_stages_in_order(pool):
    outcomes = run(pool, ["ok"] * 20)
    assert [o.value[0] for o in outcomes] == list(range(20))
    own, groups = set(), set()
    for number, outcome in enumerate(outcomes):
        first, second, third = outcome.value[1]
        own.add(second)
        assert second not in (first, third)
        groups.add(outcome.value[2])
        assert outcome.files[0].read() == bytes([number]) * 100_000
        outcome.close()
    assert len(own) == 1
    assert max(groups) <= 3


def test_a_death_in_a_later_stage_is_tried_again_with_the_same_files(pool, tmp_path):
    outcomes = run(pool, ["ok", "die once", "ok", "ok"], tmp_path / "died")
    assert (tmp_path / "died").exists()
    assert [o.value[0] for o in outcomes] == [0, 1, 2, 3]
    for number, outcome in enumerate(outcomes):
        assert outcome.files[0].read(1) == bytes([number])
        outcome.close()


def test_a_task_that_kills_costs_no_other(pool):
    outcomes = run(pool, ["ok", "ok", "die", "ok", "ok", "ok"])
    assert outcomes[2] == Died(-signal.SIGKILL)
    assert [o.value[0] for o in outcomes if isinstance(o, Result)] == [0, 1, 3, 4, 5]
    for outcome in outcomes:
        if isinstance(outcome, Result):
            outcome.close()


def test_an_error_in_a_later_stage_is_an_outcome(pool):
    (outcome,) = run(pool, ["raise"])
    assert isinstance(outcome, Failed)
    assert str(outcome.error) == "no 0"
    (outcome,) = run(pool, ["ok"])
    assert outcome.value[0] == 0
    outcome.close()
