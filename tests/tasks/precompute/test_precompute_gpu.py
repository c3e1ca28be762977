"""Precompute with the flow in a process of its own, PyTorch on the CPU standing in for the GPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import gpu_stand_in
from support.paths import TESTS
from support.videos import noise_images, write_video

from i3d.data.shards import open_dataset
from i3d.data.videos import VideoSet
from i3d.errors import UsageError
from i3d.flow import flow_kernel
from i3d.tasks.precompute import encode, writing
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute

SMALL = Settings(short_side=24, clips_per_shard=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Four videos of two sizes, one of a single frame, and a broken one."""
    root = tmp_path_factory.mktemp("kinetics") / "val"
    names = ["archery/a", "archery/b", "bowling/c", "bowling/d"]
    for i, (name, frames) in enumerate(zip(names, (6, 5, 1, 4), strict=True)):
        images = [
            cv2.GaussianBlur(x, (0, 0), 2) for x in noise_images(frames, 32 + 8 * (i % 2), 24, i)
        ]
        write_video(root / f"{name}.mp4", images)
    (root / "bowling/broken.mp4").write_bytes(b"not a video")
    return root


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(encode, "flow_videos", encode.flow_videos)  # put back afterwards
    monkeypatch.setattr(writing, "choose_flow_device", writing.choose_flow_device)
    gpu_stand_in.install()


def run(videos, output, device="cuda", workers=2):
    dataset = VideoSet(videos, classes="kinetics400")
    return precompute(dataset, output, settings=SMALL, work=Work(workers, device))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_same_pictures_as_on_the_cpu(videos, stand_in, tmp_path):
    result = run(videos, tmp_path / "gpu")
    assert (result.found, result.encoded, len(result.failed)) == (5, 4, 1)
    assert result.complete
    on_cpu = run(videos, tmp_path / "cpu", device="cpu")
    assert (on_cpu.frames, on_cpu.failed) == (result.frames, result.failed)
    kernels = {}
    pairs = []
    for name in ("gpu", "cpu"):
        dataset = open_dataset(tmp_path / name)
        kernels[name] = dataset.manifest.parameters["flow_kernel"]
        pairs.append(list(dataset.stream()))
    assert kernels == {"gpu": flow_kernel("cuda"), "cpu": "cpu"}
    assert kernels["gpu"] != "cpu"
    for ours, reference in zip(*pairs, strict=True):
        assert ours.key == reference.key
        np.testing.assert_array_equal(ours.frames(), reference.frames())
        # PyTorch's operations gave the CPU kernel's bits wherever that was measured
        stored, expected = ours.stored_flow().astype(int), reference.stored_flow()
        assert stored.shape == expected.shape
        assert (stored != expected).sum() <= stored.size / 100  # measured 0
    run(videos, tmp_path / "one", workers=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "gpu")


def test_going_on_with_another_kernel_is_refused(videos, stand_in, tmp_path):
    run(videos, tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match=r'flow_kernel: "cpu", now "cuda"'):
        run(videos, tmp_path / "out")


def dies_over_one_video(results, *, device):
    """A process with the GPU that is killed, always over the first video."""
    if any(result.value.width == 40 and len(result.value.rgb) == 5 for result in results):
        os.kill(os.getpid(), signal.SIGKILL)
    return gpu_stand_in.flow_on_cpu(results, device=device)


def test_a_dead_gpu_process_costs_one_shard(videos, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "flow_videos", dies_over_one_video)
    result = run(videos, tmp_path / "out")
    ((_, reason),) = result.lost
    assert "b.mp4: its worker was ended by SIGKILL" in reason
    assert not result.complete
    monkeypatch.setattr(encode, "flow_videos", gpu_stand_in.flow_on_cpu)
    assert run(videos, tmp_path / "out").complete
    run(videos, tmp_path / "reference")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.mark.slow
def test_killed_and_resumed(videos, stand_in, tmp_path):
    code = (
        "import sys; from support import gpu_stand_in; from i3d.cli import main\n"
        "if __name__ == '__main__':\n    gpu_stand_in.install(); main(sys.argv[1:])"
    )
    arguments = [
        *(sys.executable, "-c", code, "precompute", str(videos), str(tmp_path / "out")),
        *("--short-side", "24", "--clips-per-shard", "2", "--classes", "kinetics400"),
        *("--device", "cuda", "--workers", "2"),
    ]
    path = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    for seconds in (2, 5):
        process = subprocess.Popen(
            arguments, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    subprocess.run(arguments, env=environment, check=True, capture_output=True)
    run(videos, tmp_path / "reference")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
