"""The worker pool: order, files, and workers that die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import TESTS
from support.pool_work import work

from i3d.parallel.pool import Died, Failed, Result, WorkerPool


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(work, workers=2, environment={"I3D_TEST_WORKER": "yes"}) as pool:
        yield pool


def test_outcomes_come_in_the_order_of_the_tasks(pool):
    tasks = [("sleep", 0.3), ("sleep", 0.0), ("sleep", 0.1), ("sleep", 0.0)]
    assert [(t, o.value) for t, o in pool.map(tasks, ahead=4)] == [(t, t) for t in tasks]


def test_no_more_is_begun_than_allowed(pool):
    begun = []

    def tasks():
        for i in range(10):
            begun.append(i)
            yield ("sleep", 0)

    for done, _ in enumerate(pool.map(tasks(), ahead=3)):
        assert len(begun) <= done + 3 + 1
    assert len(begun) == 10


def test_files_travel(pool):
    tasks = [("file", bytes([i])) for i in range(20)]
    for i, (_, outcome) in enumerate(pool.map(tasks, ahead=5)):
        assert outcome.files[0].read() == bytes([i]) * 100_000
        assert outcome.files[1].read() == b""
        outcome.close()


def test_an_error_is_an_outcome_and_the_worker_goes_on(pool):
    outcomes = [o for _, o in pool.map([("raise", "luck"), ("sleep", 0)], ahead=2)]
    assert isinstance(outcomes[0], Failed)
    assert str(outcomes[0].error) == "no luck"
    assert "in work" in outcomes[0].traceback
    assert isinstance(outcomes[1], Result)


def test_a_dead_worker_costs_its_task_alone(pool):
    tasks = [("sleep", 0.1), ("die", 0), *[("sleep", 0)] * 5]
    outcomes = [o for _, o in pool.map(tasks, ahead=7)]
    assert outcomes[1] == Died(-signal.SIGKILL)
    assert "SIGKILL, perhaps for lack of memory" in str(outcomes[1])
    assert all(isinstance(o, Result) for i, o in enumerate(outcomes) if i != 1)


def test_a_task_is_tried_again_after_a_death(pool, tmp_path):
    task = ("die once", str(tmp_path / "mark"))
    assert [o for _, o in pool.map([task], ahead=1)] == [Result(task)]


def test_environment_of_the_workers(pool):
    ((_, outcome),) = pool.map([("environment", "I3D_TEST_WORKER")], ahead=1)
    assert outcome.value == "yes"
    assert "I3D_TEST_WORKER" not in os.environ


def test_closing_ends_busy_workers_at_once():
    pool = WorkerPool(work, workers=2)
    outcomes = pool.map([("sleep", 0), ("sleep", 60)], ahead=2)
    next(outcomes)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 2


def test_workers_do_not_outlive_a_killed_parent():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from i3d.parallel.pool import WorkerPool; from support.pool_work import work\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(work, workers=2)\n"
        "    print(*[w.process.pid for w in pool._workers], flush=True)\n"
        "    list(pool.map([('sleep', 60)] * 2, ahead=2))\n"
    )
    command = [sys.executable, "-c", script, str(TESTS)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers are still there ten seconds after their parent was killed")
