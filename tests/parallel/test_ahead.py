"""Reading ahead when worker processes fail: the job ends, says why, and leaves nothing."""

import os
import subprocess
import sys

import pytest
from support.paths import TESTS

from i3d.errors import I3DError
from i3d.parallel.ahead import read_items

SCRIPT = """\
import resource, sys
sys.path.insert(0, sys.argv[1])
from i3d.errors import I3DError
from i3d.parallel.ahead import read_items
from support.pool_work import read

if __name__ == "__main__":
    {prepare}
    try:
        for item in read_items(read, range({count}), workers=1):
            print(int(item.tensors["x"][0]), flush=True)
    except I3DError as error:
        print("I3DError:", error)
"""


def run(tmp_path, prepare="pass", count=2):
    """The lines that a process prints which reads so many items with a worker, and TMPDIR."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(prepare=prepare, count=count), str(TESTS)],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines(), list(temporary.iterdir())


def test_items_come_and_nothing_is_left(tmp_path):
    assert run(tmp_path) == (["0", "1"], [])


def test_a_worker_that_has_no_shared_memory_ends_the_job(tmp_path):
    """Such a job waited for ever: what PyTorch's queue could not send was lost without a word."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    lines, left = run(tmp_path, prepare=limit)
    (line,) = lines
    assert line.startswith("I3DError: a worker process cannot hand over what it read")
    assert "File too large" in line and "fewer --workers" in line
    assert left == []


def test_a_killed_worker_ends_the_job_and_leaves_no_socket(tmp_path):
    lines, left = run(tmp_path, count=4)
    assert lines[-1].startswith("I3DError: a worker process")
    assert left == []


def test_of_a_killed_job_nothing_is_said():
    """Python's resource tracker would warn of semaphores, which it gives back."""
    script = SCRIPT.format(prepare="import os", count=1)
    script = script.replace("print(int(", "os.kill(os.getpid(), 9), print(int(")
    command = [sys.executable, "-c", script, str(TESTS)]
    done = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (-9, b"")


def has_no_memory(i):
    raise MemoryError("Unable to allocate 9 GiB")


def test_a_lack_of_memory_is_no_videos_fault():
    with pytest.raises(I3DError, match=r"allocate 9 GiB.*fewer --workers"):
        list(read_items(has_no_memory, [0], workers=0))
