"""`examples/i3d`: every option of the Chainer program's scripts, their output, the exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.bundles import save_pair
from support.chainer_folders import Sample, moving_video, write_shard
from support.videos import noise_images, write_video

from i3d.data.shards import open_dataset
from i3d.data.videos import VideoSet
from i3d.models.checkpoints import read_weights
from i3d.tasks.convert import convert
from i3d.tasks.precompute.options import Settings
from i3d.tasks.precompute.writing import precompute

SCRIPTS = Path(__file__).parents[1] / "examples" / "i3d"
CLASSES = ("archery", "bowling")
QUICK = ["--sample_video_frames", "16", "--device", "cpu"]
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


def run_script(*arguments, script="eval_kinetics", folder=None, **environment):
    return subprocess.run(
        [sys.executable, SCRIPTS / f"{script}.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
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
    assert report["protocol"]["frames"] == 16
    assert f"Top-1 accuracy {report['two_stream']['top1']}\n" in done.stdout
    assert "--use_chainerio changes nothing" in done.stderr


def test_one_stream_of_a_url(shards, checkpoints):
    """What --use_chainerio was for."""
    url = f"file://{shards}"
    arguments = [url, "--flow_model_checkpoint", checkpoints / "flow.safetensors", *QUICK]
    done = run_script(*arguments, "--num_preprocess_workers", "0")
    assert done.returncode == 0, done.stderr
    assert [label for label, _ in ROW.findall(done.stdout)] == ["flow"]


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


def test_a_folder_of_the_program_with_its_defaults_and_its_networks(tmp_path):
    """A name is the file in ./models first; labels are positions in the network's list."""
    (tmp_path / "models").mkdir()
    for stream, path in save_pair(tmp_path, num_classes=400, classes="kinetics400").items():
        convert(path, tmp_path / "models" / f"{stream}_scratch_kinetics400.npz")
    video, flow = moving_video(10)
    write_shard(tmp_path / "val" / "shard_0_0.zip", [Sample(399, video, flow)])
    done = run_script(
        "val",
        *("--rgb_model_checkpoint", "rgb_scratch_kinetics400"),
        *("--flow_model_checkpoint", "flow_scratch_kinetics400"),
        *("--sample_video_frames", "9", "--classes", "kinetics400", "--json"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["preset"], report["evaluated"]) == ("chainer-i3d", 1)
    assert (report["batch_size"], report["workers"]) == (2, 2)  # the program's defaults
    assert [Path(c["name"]).parent.name for c in report["checkpoints"].values()] == ["models"] * 2
    assert "no names" not in done.stderr


def test_precompute_with_every_option(tmp_path):
    """Whole videos, as many as are told in a shard; what means nothing any more is said so."""
    for name in CLASSES:
        write_video(tmp_path / "videos" / name / "a.mp4", noise_images(12, 80, 64, 1), rate=1)
    arguments = ["videos", "shards", "--num_samples_per_shard", "1", "--skip_video_check"]
    arguments += ["--num_preprocess_workers", "2", "--print_progress_num_shards", "5"]
    arguments += ["--no_compute_flow", "--short-side", "32"]
    done = run_script(*arguments, script="precompute_frames_flow", folder=tmp_path)
    assert done.returncode == 1
    assert "ambiguous" in done.stderr and "--classes kinetics400" in done.stderr
    arguments += ["--classes", "folders"]
    done = run_script(*arguments, script="precompute_frames_flow", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for option in ("--skip_video_check", "--print_progress_num_shards"):
        assert f"{option} changes nothing: " in done.stderr
    dataset = open_dataset(tmp_path / "shards")
    assert dataset.manifest.streams == ("rgb",)
    assert list(map(len, dataset.manifest.shards)) == [1, 1]
    sample = dataset.read_sample("archery/a")
    assert sample.count("rgb") == 12 * 25  # of 12 seconds
    assert sample.class_index == 0


def test_conversion_to_any_name(tmp_path, bundle_folder):
    """The array names are those that the program wrote; the two numbers are compared."""
    checkpoint = bundle_folder("rgb400") / "model.ckpt"
    wrong = run_script(checkpoint, tmp_path / "rgb", "2", "400", script="tfckpt2npz")
    assert wrong.returncode == 2
    assert "3 channels and 400 classes, not 2 and 400" in wrong.stderr
    done = run_script(checkpoint, tmp_path / "rgb", "3", "400", script="tfckpt2npz")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rgb"]
    with np.load(tmp_path / "rgb") as arrays:
        assert arrays["conv3d_1a_7x7/conv3d/conv/W"].shape == (64, 3, 7, 7, 7)
        assert len(arrays.files) == 287
    assert read_weights(tmp_path / "rgb").config.num_classes == 400
