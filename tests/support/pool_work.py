"""What the worker pools of the tests do; the workers, processes of their own, import it."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from i3d.parallel.pool import Result, temporary_file


def work(task) -> Result:
    """One thing, by the task's kind; tasks are (kind, value)."""
    kind, value = task
    if kind == "sleep":
        time.sleep(value)
    elif kind == "raise":
        raise ValueError(f"no {value}")
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "die once":
        if not Path(value).exists():
            Path(value).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "file":
        file = temporary_file()
        file.write(value * 100_000)
        return Result(len(value), (file, temporary_file()))
    elif kind == "environment":
        return Result(os.environ.get(value))
    return Result((kind, value))


# --- reading ahead --------------------------------------------------------------------------------


def read(i):
    """An array of 1 MB for `read_items`, from a worker that lives for two of them."""
    if i == 2:
        time.sleep(0.5)  # for the others to be on their way
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": np.full(1 << 20, i, np.uint8)}, None


# --- in stages ------------------------------------------------------------------------------------


def begin(task) -> Result:
    """A file with the task's number; tasks are (number, what happens to it, a path)."""
    file = temporary_file()
    file.write(bytes([task[0]]) * 100_000)
    return Result((task, [os.getpid()]), (file,))


def middle(results):
    """Carries the files on and adds one, from all the results that came together."""
    for result in results:
        (number, fate, path), _ = result.value
        if fate == "raise":
            raise ValueError(f"no {number}")
        if fate == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "die once" and not Path(path).exists():
            assert len(results[0].files[0].read()) == 100_000  # the next one must read it again
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    done = []
    for result in results:
        content = result.files[0].read()
        file = temporary_file()
        file.write(content[::-1][:10])
        task, processes = result.value
        done.append(Result((task, [*processes, os.getpid()], len(results)), (*result.files, file)))
    return done


def end(results):
    """Checks the file that was added, and drops it."""
    (result,) = results
    task, processes, together = result.value
    assert result.files[1].read() == bytes([task[0]]) * 10
    return [Result((task[0], [*processes, os.getpid()], together), result.files[:1])]
