"""A server that fails in the middle of a job: it ends with the cause, and no video is skipped."""

import pytest
from support import bundles
from support.command import exit_code
from support.videos import video_bytes
from support.web import WebServer

from i3d.models.checkpoints import save


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    save(bundles.small_model(num_classes=None, classes="kinetics400"), path)
    return path


@pytest.fixture
def server():
    """Two videos, of which one is behind a failure."""
    with WebServer() as server:
        server.files = {f"/archery/{name}.mp4": video_bytes(20) for name in "ab"}
        server.failures["/archery/b.mp4"] = (503, {"Retry-After": "3600"})
        yield server


@pytest.mark.parametrize("job", ["evaluate", "features", "fvd", "dry run"])
def test_no_video_is_skipped(job, server, network, tmp_path, capsys):
    videos = tmp_path / "list.txt"
    videos.write_text("".join(f"{server.url}{name} archery\n" for name in server.files))
    classes = ["--classes", "kinetics400"]
    compute = ["--device", "cpu", "--workers", "0"]
    output = tmp_path / "out"
    arguments = {
        "evaluate": ["evaluate", videos, *classes, "--rgb-checkpoint", network, *compute],
        "features": ["features", videos, output, "--checkpoint", network, *compute],
        "fvd": ["fvd", videos, videos, "--checkpoint", network, "--frames", "9", *compute],
        "dry run": ["precompute", videos, "--dry-run", "--no-flow", *classes],
    }[job]
    assert exit_code(*arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"i3d: cannot read {server.url}/archery/b.mp4: HTTP 503 ")


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt", "onnx", "ckpt"])
def test_a_checkpoint_behind_a_failure_is_not_called_damaged(suffix, server, capsys):
    name = f"/model.{suffix}"
    server.failures[f"{name}.index" if suffix == "ckpt" else name] = (503, {"Retry-After": "3600"})
    assert exit_code("predict", "x.mp4", "--checkpoint", f"{server.url}{name}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "HTTP 503 Service Unavailable" in line
    assert "not a" not in line


def test_a_checkpoint_and_a_class_list_on_a_web_server(server, network, tmp_path, capsys):
    for ranges in (True, False):
        server.ranges = ranges
        server.files |= {"/small.safetensors": network.read_bytes()}
        server.files |= {"/classes.txt": b"archery\nbowling\n"}
        url = f"{server.url}/small.safetensors"
        video = f"{server.url}/archery/a.mp4"
        assert exit_code("predict", video, "--every", "0.4", "--checkpoint", url) == 0
        (tmp_path / "list.txt").write_text(f"{video} archery\n")
        names = ["--classes", f"{server.url}/classes.txt", "--dry-run", "--no-flow"]
        assert exit_code("precompute", tmp_path / "list.txt", *names) == 0
