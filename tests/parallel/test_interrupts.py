"""Ctrl-C and SIGTERM while processes start: one line, the exit code, and nobody left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.bundles import save_pair
from support.videos import write_video

CLASSES = ("archery", "bowling", "clapping")

# The first worker was just asked for: it has yet to start Python, or to read what it is to do.
WHILE_STARTING = """
import multiprocessing.process as process, os, signal, sys
start = process.BaseProcess.start
def start_and_interrupt(self):
    start(self)
    process.BaseProcess.start = start
    {send}
process.BaseProcess.start = start_and_interrupt
from i3d.cli import main
if __name__ == "__main__":
    main(sys.argv[1:])
"""
SENT = {  # to whom
    "Ctrl-C": (signal.SIGINT, "os.killpg(0, signal.SIGINT)"),
    "SIGTERM to all": (signal.SIGTERM, "os.killpg(0, signal.SIGTERM)"),
    "SIGTERM": (signal.SIGTERM, "os.kill(os.getpid(), signal.SIGTERM)"),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos") / "val"
    for i, name in enumerate(CLASSES):
        write_video(root / name / "v.mp4", [np.full((56, 80, 3), 40 * i, np.uint8)] * 20)
    save_pair(root.parent, classes=CLASSES, num_classes=3, preset="kinetics-i3d-48")
    return root


def processes_of(group):
    """Those of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its) == group and state != "Z":
            found.append(path.parent.name)
    return found


def started(command, **options):
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # whoever runs the tests in the background has SIGINT ignored, which is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def assert_interrupted(process, sent):
    out, err = process.communicate(timeout=60)
    told = [line for line in err.splitlines() if not line.startswith(("folders: ", "warning: "))]
    assert told == ["i3d: interrupted"], err
    assert (process.returncode, out) == (128 + sent, "")
    end = time.monotonic() + 10
    while processes_of(process.pid):
        assert time.monotonic() < end, "a process outlives the command"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    ("job", "how"),
    [
        *(("precompute", how) for how in SENT),
        ("evaluate", "Ctrl-C"),
        *(  # ten seconds each on a busy machine, for importing PyTorch
            pytest.param(job, how, marks=pytest.mark.slow)
            for job in ("evaluate", "features", "fvd")
            for how in SENT
            if (job, how) != ("evaluate", "Ctrl-C")
        ),
    ],
)
def test_while_workers_start(videos, tmp_path, job, how):
    sent, send = SENT[how]
    rgb = str(videos.parent / "rgb.safetensors")
    arguments = {
        "precompute": [str(tmp_path / "out"), "--classes", "folders"],
        "evaluate": ["--rgb-checkpoint", rgb, "--classes", "folders", "--device", "cpu"],
        "features": [str(tmp_path / "out"), "--checkpoint", rgb, "--device", "cpu"],
        "fvd": [str(videos), "--checkpoint", rgb, "--device", "cpu", "--frames", "9"],
    }[job]
    script = tmp_path / "interrupted.py"  # spawned workers run it again, as no main program
    script.write_text(WHILE_STARTING.format(send=send))
    command = [sys.executable, str(script), job, str(videos), *arguments, "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert_interrupted(started(command, env=environment), sent)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_before_anything_was_imported(tmp_path, sent):
    """The command's own imports take a second on a busy machine."""
    (tmp_path / "click.py").write_text(
        f"import os, time; os.kill(os.getpid(), {int(sent)}); time.sleep(60)"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "i3d", "--version"]
    assert_interrupted(started(command, env=os.environ | {"PYTHONPATH": path}), sent)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_when_all_is_done(sent):
    code = f"import atexit, os; atexit.register(os.kill, os.getpid(), {int(sent)})\n"
    code += "from i3d.__main__ import main; main()"
    process = started([sys.executable, "-c", code, "--version"])
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_an_ignored_signal_stays_ignored():
    """As nohup and a shell's background jobs have it."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from i3d.parallel.process import workers_start\n"
        "with workers_start():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "signal.raise_signal(signal.SIGINT)\n"
        "assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
        "assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
