"""`examples/i3d/eval_kinetics.py`: the historical options, the table, the exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.bundles import save_pair
from support.videos import noise_images, write_video

from i3d.data.videos import VideoSet
from i3d.tasks.precompute.options import Settings
from i3d.tasks.precompute.writing import precompute

SCRIPT = Path(__file__).parents[1] / "examples" / "i3d" / "eval_kinetics.py"
CLASSES = ("archery", "bowling")
QUICK = ["--frames", "16", "--device", "cpu"]
ROW = re.compile(r"^(RGB|flow|two-stream) +([\d.]+) \[", re.MULTILINE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two videos, RGB and flow."""
    root = tmp_path_factory.mktemp("kinetics") / "val"
    for i, name in enumerate(CLASSES):
        write_video(root / name / "a.mp4", noise_images(17, 80, 64, i))
    folder = tmp_path_factory.mktemp("shards") / "out"
    with pytest.warns(UserWarning, match="sorted list of these folders"):
        precompute(VideoSet(root, classes="folders"), folder, settings=Settings(short_side=64))
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_pair(folder, num_classes=2, classes=CLASSES, preset="kinetics-i3d-64")
    return folder


def run_script(*arguments, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_historical_options(shards, checkpoints, tmp_path):
    """As one process that mpiexec has started."""
    done = run_script(
        *("--output", tmp_path / "report.json", shards),  # a further option, before DIR
        *("--rgb_model_checkpoint", checkpoints / "rgb.safetensors"),
        f"--flow_model_checkpoint={checkpoints / 'flow.safetensors'}",
        *("--batch_size", "2", "--num_preprocess_workers", "1", "--use_chainerio"),
        *QUICK,
        OMPI_COMM_WORLD_RANK="0",
        OMPI_COMM_WORLD_SIZE="1",
        OMPI_COMM_WORLD_LOCAL_RANK="0",
        OMPI_COMM_WORLD_LOCAL_SIZE="1",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert ROW.findall(done.stdout) == [
        (label, f"{100 * report[row]['top1']:.2f}")
        for label, row in (("RGB", "rgb"), ("flow", "flow"), ("two-stream", "two_stream"))
    ]
    assert (report["evaluated"], report["batch_size"], report["workers"]) == (2, 2, 1)


def test_one_stream_of_a_url(shards, checkpoints):
    """What --use_chainerio was for; it changes nothing."""
    url = f"file://{shards}"
    arguments = [url, "--flow_model_checkpoint", checkpoints / "flow.safetensors", *QUICK]
    outputs = []
    for option in ([], ["--use_chainerio"]):
        done = run_script(*arguments, *option, "--num_preprocess_workers", "0")
        assert done.returncode == 0, done.stderr
        outputs.append(ROW.findall(done.stdout))
    assert outputs[0] == outputs[1]
    assert [label for label, _ in outputs[0]] == ["flow"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SHARDS"], 2, "no checkpoint"),
        (["SHARDS", "--rgb_model", "RGB"], 2, "--rgb-model"),
        (["nowhere", "--rgb_model_checkpoint", "RGB"], 1, "cannot read nowhere"),
        (["SHARDS", "--rgb_model_checkpoint", "FLOW"], 1, "flow-checkpoint"),
    ],
)
def test_a_mistake_is_2_and_a_failed_job_1(shards, checkpoints, arguments, code, words):
    places = {"SHARDS": shards}
    places |= {s.upper(): checkpoints / f"{s}.safetensors" for s in ("rgb", "flow")}
    done = run_script(*(places.get(a, a) for a in arguments), *QUICK)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
