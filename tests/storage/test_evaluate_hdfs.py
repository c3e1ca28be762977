"""`i3d evaluate` on real servers: what a local disk gives, through kills and failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.bundles import small_model
from support.command import exit_code
from support.storage import upload
from support.videos import noise_images, write_video

from i3d import files
from i3d.data.shards import open_dataset
from i3d.data.videos import VideoSet
from i3d.models.checkpoints import save
from i3d.tasks.evaluate.predictions import read_predictions
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute

CLASSES = ("archery", "bowling", "clapping")
VIDEOS = 20
TIMES = {"seconds", "videos_per_second"}  # all that may differ between two reports

# The command line, keeping every video's logits at once instead of every minute's.
EAGER = (
    "import sys; from i3d.tasks.evaluate import logits as task; from i3d.cli import main\n"
    "task.PART_SECONDS = 0\n"
    "if __name__ == '__main__': main(['evaluate', *sys.argv[1:]])"
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Twenty videos and a broken one, in five shards."""
    root = tmp_path_factory.mktemp("kinetics") / "val"
    for i in range(VIDEOS):
        write_video(root / CLASSES[i % 3] / f"{i}.mp4", noise_images(17 + i % 3, 80, 64, i))
    (root / "bowling" / "broken.mp4").write_bytes(b"not a video")
    folder = tmp_path_factory.mktemp("local") / "shards"
    settings = Settings(short_side=64, clips_per_shard=5)
    with pytest.warns(UserWarning, match="sorted list of these folders"):
        precompute(
            VideoSet(root, classes="folders"), folder, settings=settings, work=Work(workers=2)
        )
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Options that name an RGB and a flow network."""
    options = []
    for seed, stream in enumerate(("rgb", "flow")):
        path = tmp_path_factory.mktemp("checkpoints") / f"{stream}.safetensors"
        preset = "kinetics-i3d-64"
        save(small_model(seed, stream=stream, num_classes=3, classes=CLASSES, preset=preset), path)
        options += [f"--{stream}-checkpoint", str(path)]
    return options


@pytest.fixture(scope="module")
def local(shards, checkpoints, tmp_path_factory):
    """Report and predictions of the shards on the local disk."""
    folder = tmp_path_factory.mktemp("results")
    process = start(shards, checkpoints, folder / "p.parquet", folder / "report.json")
    return finished(process, folder / "p.parquet", folder / "report.json")


def start(shards, checkpoints, predictions, output, *options, program=("-m", "i3d", "evaluate")):
    """``i3d evaluate`` in a process group of its own, with two workers."""
    return subprocess.Popen(
        [
            *(sys.executable, *program, str(shards), *checkpoints),
            *("--frames", "16", "--workers", "2", "--device", "cpu"),
            *("--predictions", str(predictions), "--output", str(output), *options),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process, predictions, output):
    """The report but for its times, and the table of logits."""
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert not files.exists(f"{predictions}.parts")
    report = json.loads(Path(output).read_text())
    assert report["seconds"] > 0
    table = read_predictions(predictions)
    return {k: v for k, v in report.items() if k not in TIMES}, table


def same(one, other):
    """Not one bit of the report or the logits differs."""
    assert one[0] == other[0]
    assert one[1].videos == other[1].videos
    for stream in ("rgb", "flow"):
        np.testing.assert_array_equal(one[1].logits[stream], other[1].logits[stream])


def under_way(process, predictions) -> int:
    """Wait until some videos are done and most are not; how many."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        done = len(parts_of(predictions))
        if done >= 2:
            assert done < VIDEOS // 2
            return done
        time.sleep(0.01)
    pytest.fail(f"no parts: {process.communicate(timeout=5)[1]}")


def parts_of(predictions) -> list[str]:
    folder = f"{predictions}.parts"
    names = files.names_in(folder) if files.exists(folder) else []
    return [name for name in names if name.startswith("part-")]


S3 = [pytest.param(name, marks=pytest.mark.slow) for name in ("moto", "ceph")]
HDFS_SLOWLY = pytest.param("hdfs", marks=[pytest.mark.storage, pytest.mark.slow])


@pytest.fixture
def server(request, use_server):
    return use_server(request.param)


# On HDFS, test_killed_and_resumed and those after it say as much.
@pytest.mark.parametrize("server", [HDFS_SLOWLY, *S3], indirect=True)
def test_the_report_is_that_of_a_local_disk(server, shards, checkpoints, local, tmp_path):
    """Shards and predictions are there, and two workers read."""
    there = f"{server.url}/{tmp_path.name}"
    upload(shards, f"{there}/shards")
    predictions, output = f"{there}/p.parquet", tmp_path / "report.json"
    process = start(f"{there}/shards", checkpoints, predictions, output)
    report, table = finished(process, predictions, output)
    same((report, table), local)
    assert (report["found"], report["evaluated"]) == (VIDEOS + 1, VIDEOS)


@pytest.mark.parametrize(
    "server", [pytest.param("hdfs", marks=pytest.mark.storage), *S3], indirect=True
)
def test_what_is_not_there(server, shards, checkpoints, tmp_path, capsys):
    """One line that names it, at once."""
    nothing = f"{server.url}/nothing"
    cases = [
        ([f"{nothing}/shards", *checkpoints], 1, f"{nothing}/shards: no such file"),
        ([shards, "--rgb-checkpoint", f"{nothing}/x.safetensors"], 2, f"{nothing}/x.safetensors"),
    ]
    if server.url.startswith("s3"):
        bucket = "s3://i3d-no-such-bucket"
        cases.append(([f"{bucket}/shards", *checkpoints], 1, f"{bucket}/shards: no such file"))
    for arguments, code, words in cases:
        start_seconds = time.monotonic()
        assert exit_code("evaluate", *arguments) == code
        assert time.monotonic() - start_seconds < 20
        out, errors = capsys.readouterr()
        assert out == ""
        assert len(errors.splitlines()) == 1
        assert words in errors


@pytest.mark.storage
def test_a_wrong_address(shards, checkpoints, capsys):
    """Of the shards, or of the predictions: before any work."""
    pytest.importorskip("hdfs_native")
    address = "hdfs://127.0.0.1:1"
    elsewhere = ["--predictions", f"{address}/p.parquet", "--frames", "16", "--workers", "0"]
    for arguments in ([f"{address}/shards", *checkpoints], [shards, *checkpoints, *elsewhere]):
        start_seconds = time.monotonic()
        assert exit_code("evaluate", *arguments) == 1
        assert time.monotonic() - start_seconds < 20
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"i3d: {address} does not answer: ")


@pytest.mark.storage
def test_killed_and_resumed(hdfs, shards, checkpoints, local, tmp_path):
    """What was done is kept on HDFS, and is not done again."""
    there, output = f"{hdfs.url}/{tmp_path.name}", tmp_path / "report.json"
    upload(shards, f"{there}/shards")
    predictions = f"{there}/p.parquet"
    arguments = (f"{there}/shards", checkpoints, predictions, output)
    process = start(*arguments, program=("-c", EAGER))
    done = under_way(process, predictions)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert not files.exists(predictions)
    kept = parts_of(predictions)
    assert len(kept) >= done

    same(finished(start(*arguments, "--resume"), predictions, output), local)
    report = json.loads(output.read_text())
    again = round(report["seconds"] * report["videos_per_second"])
    assert 0 < again <= VIDEOS - len(kept)  # a part holds one video or more
    assert files.names_in(there) == ["p.parquet", "shards"]


@pytest.fixture
def mortal(use_server, shards) -> tuple[str, dict[str, int]]:
    """URL of shards on an HDFS that may be harmed, each block on two DataNodes, and processes."""
    server = use_server("hdfs", copy=2)
    url = f"{server.url}/shards"
    if not files.exists(url):
        upload(shards, url)
        assert len(open_dataset(url).shards) == 5
    return url, server.processes


@pytest.mark.storage
def test_a_datanode_that_dies_costs_only_time(mortal, checkpoints, local, tmp_path):
    url, processes = mortal
    predictions, output = tmp_path / "p.parquet", tmp_path / "report.json"
    process = start(url, checkpoints, predictions, output, program=("-c", EAGER))
    under_way(process, predictions)
    os.kill(processes["datanode-0"], signal.SIGKILL)
    same(finished(process, predictions, output), local)


@pytest.mark.storage
def test_all_datanodes_die(mortal, checkpoints, tmp_path):
    """No video is at fault: the job fails with one line and keeps what was done."""
    url, processes = mortal
    predictions, output = tmp_path / "p.parquet", tmp_path / "report.json"
    process = start(url, checkpoints, predictions, output, program=("-c", EAGER))
    done = under_way(process, predictions)
    for name in ("datanode-0", "datanode-1"):
        os.kill(processes[name], signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "cannot read hdfs://" in errors.splitlines()[-1]
    assert len(errors) < 1000
    assert len(parts_of(predictions)) >= done
    assert not predictions.exists()
    assert not output.exists()


def test_workers_end_with_a_killed_job(shards, checkpoints, tmp_path):
    predictions, output = tmp_path / "p.parquet", tmp_path / "report.json"
    process = start(shards, checkpoints, predictions, output, program=("-c", EAGER))
    try:
        under_way(process, predictions)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)


def alive(group: int) -> list[int]:
    """The processes of a group that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, parent_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(parent_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found
