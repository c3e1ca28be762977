"""Sets of thousands of videos: memory that does not grow, and jobs that are killed."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.bundles import lively_model

import i3d

pytestmark = pytest.mark.slow

VIDEOS = 3000
# Prints the result, and the largest resident set in kB.
PROGRAM = """
import json, resource, sys, warnings
from i3d.tasks.fvd import change_protocol, fvd
from i3d.tasks.options import ComputeOptions

warnings.simplefilter("ignore")
if __name__ == "__main__":
    real, fake, checkpoint = sys.argv[1:]
    small = change_protocol("google-2018", {"size": 32, "frames": 9})
    options = ComputeOptions(workers=1, device="cpu")
    result = fvd(real, fake, checkpoint=checkpoint, protocol=small, options=options)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([None if result is None else result.as_dict(), used]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    i3d.save(lively_model(2, num_classes=5), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of one array a video: 300 and 3,000 real ones, 300 fake ones."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name, count in (("some", 300), ("many", VIDEOS), ("fake", 300)):
        (root / name).mkdir()
        for i in range(count):
            tiles = rng.integers(0, 256, (9 if i % 2 else 1, 3, 4, 3), dtype=np.uint8)
            video = tiles.repeat(9 // len(tiles), 0).repeat(8, 1).repeat(8, 2)
            np.save(root / name / f"{i:05d}.npy", video)
    return root


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "measure.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """So small a network gains nothing by more, and loses much where the machine has other work."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_memory_does_not_grow_with_the_set(program, checkpoint, folders):
    fake = folders / "fake"
    [(_, some)] = run(sys.executable, program, folders / "some", fake, checkpoint)
    [(report, many)] = run(sys.executable, program, folders / "many", fake, checkpoint)
    assert report["real"]["used"] == VIDEOS
    # kB; measured: 330 and 324 MB
    assert many < some + 20_000


def test_a_job_that_is_killed_again_and_again_ends_as_one_that_is_not(
    program, checkpoint, folders, tmp_path, monkeypatch, cache
):
    command = sys.executable, program, folders / "many", folders / "fake", checkpoint
    kills = 0
    while True:
        before = len(list(cache.glob("fvd/*/*.npz")))
        started = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
        while started.poll() is None:
            if kills < 5 and len(list(cache.glob("fvd/*/*.npz"))) > before + 20:
                started.kill()
            time.sleep(0.05)
        out, _ = started.communicate()
        if started.returncode == 0:
            break
        assert started.returncode == -signal.SIGKILL
        kills += 1
    assert kills == 5
    monkeypatch.setenv("I3D_CACHE", str(tmp_path / "another"))
    [(whole, _)] = run(*command)
    assert json.loads(out)[0] == whole


@pytest.mark.parametrize("processes", [2, 3])
def test_more_processes_give_the_same_digits(
    program, checkpoint, folders, monkeypatch, tmp_path, processes
):
    """Each with one thread, so that the network's own sums are the same."""
    given = program, folders / "many", folders / "fake", checkpoint
    [(one, _)] = run(sys.executable, *given)
    monkeypatch.setenv("I3D_CACHE", str(tmp_path / "another"))
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes
    found = [report for report, _ in run(sys.executable, *launcher, *given) if report is not None]
    assert found == [one]
