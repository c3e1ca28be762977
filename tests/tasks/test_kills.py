"""Killed at random moments and run again: each command leaves what an undisturbed run does."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from support.bundles import save_pair
from support.chainer_folders import Sample, moving_video, write_shard
from support.videos import noise_images, write_video

from i3d import files

pytestmark = pytest.mark.slow

KILLS = 4
CLASSES = ("archery", "bowling", "clapping")
# One thread and a batch of one: the sums are in one order, whatever was done before.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
FIXED = "--frames 16 --workers 1 --device cpu --batch-size 1"
# A part after every video, so that a kill leaves some.
PROGRAM = """
from i3d.tasks.evaluate import logits
from i3d.cli import main
logits.PART_SECONDS = 0
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Videos, the Chainer program's zips, shards, two networks, and the program."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "program.py").write_text(PROGRAM)
    for i in range(8):
        images = [cv2.GaussianBlur(x, (0, 0), 2) for x in noise_images(20 + 3 * i, 80, 56, i)]
        write_video(root / "val" / CLASSES[i % 3] / f"{i}.mp4", images)
    (root / "val" / "archery" / "broken.mp4").write_bytes(b"no video")
    for number in range(3):
        samples = [Sample(i % 3, *moving_video(30, seed=10 * number + i)) for i in range(3)]
        write_shard(root / "old" / f"shard_0_{number}.zip", samples)
    (root / "networks").mkdir()
    save_pair(root / "networks", classes=CLASSES, num_classes=3, preset="kinetics-i3d-48")
    options = "--classes folders --short-side 48 --clips-per-shard 2"
    run(root, f"precompute val shards {options}", root).check_returncode()
    return root


COMMANDS = {
    "precompute": "precompute val {out} --classes folders --short-side 48 --clips-per-shard 2",
    "convert-shards": "convert-shards old {out} --clips-per-shard 2",
    "features": f"features val {{out}} --checkpoint networks/rgb.safetensors --checkpoint "
    f"networks/flow.safetensors --window 16 --step 8 {FIXED.removeprefix('--frames 16 ')}",
    "evaluate": f"evaluate shards --rgb-checkpoint networks/rgb.safetensors --flow-checkpoint "
    f"networks/flow.safetensors --predictions {{out}} {FIXED}",
    "train": "train shards --stream rgb --output {out} --width 0.125 --epochs 3 --save-steps 2 "
    f"--log-steps 1 --val shards {FIXED.replace('size 1', 'size 4')}",
}


def arguments(inputs, command, folder, name):
    words = command.format(out=folder / name).split()
    return [sys.executable, str(inputs / "program.py"), *words]


def run(inputs, command, folder, name=""):
    return subprocess.run(
        arguments(inputs, command, folder, name),
        cwd=inputs,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )


def contents(folder):
    """Of all files but pictures and TensorBoard's events, which have the time in their names."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    apart = ("tensorboard", "curves.png")
    return {n: p.read_bytes() for n, p in found.items() if not any(a in n for a in apart)}


def session(leader):
    """The processes that a process began, and theirs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(number) == leader and state != "Z":
            found.append(int(entry.name))
    return found


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("precompute", "out"),
        ("convert-shards", "out"),
        ("features", "out"),
        ("features", "out.parquet"),
        ("evaluate", "out.parquet"),
        ("evaluate", "out.csv"),
        ("train", "out"),
    ],
)
def test_killed_at_random_moments(inputs, tmp_path, command, name):
    moments = random.Random(f"{command} {name}")
    began = time.monotonic()
    done = run(inputs, COMMANDS[command], tmp_path / "whole", name)
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - began
    folder = tmp_path / "killed"
    for _ in range(KILLS):
        process = subprocess.Popen(
            arguments(inputs, COMMANDS[command], folder, name),
            cwd=inputs,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # whoever runs the tests in the background has SIGINT ignored, which is inherited
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        time.sleep(moments.uniform(0.3, 1) * seconds)
        sent = moments.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        # a terminal's Ctrl-C and a container's end reach the workers, too
        whole = sent != signal.SIGTERM and moments.random() < 0.5
        if process.poll() is None:
            (os.killpg if whole else os.kill)(process.pid, sent)
        _, error = process.communicate(timeout=60)
        assert sent == signal.SIGKILL or "Traceback" not in error
        wait_until(lambda: not session(process.pid))  # noqa: B023
    done = run(inputs, COMMANDS[command], folder, name)
    assert done.returncode == 0, done.stderr
    assert contents(folder) == contents(tmp_path / "whole")
    left = [n for n in contents(folder) if files.final_name(n.rpartition("/")[2]) is not None]
    assert left == []
