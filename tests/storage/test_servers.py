"""The jobs on remote storage: the same bytes as on a local disk, on every kind of server.

HDFS is tested with everything else; the kinds of S3 take minutes.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support import bundles
from support.command import exit_code
from support.storage import contents, forget_servers, upload

from i3d import files
from i3d.data.shards import open_dataset
from i3d.errors import DatasetError
from i3d.models.checkpoints import save

OPTIONS = ["--short-side", "48", "--clips-per-shard", "2", "--classes", "kinetics400"]
RGB = [*OPTIONS, "--no-flow", "--workers", "1"]


@pytest.fixture(
    params=[
        pytest.param("hdfs", marks=pytest.mark.storage),
        pytest.param("moto", marks=pytest.mark.slow),
        pytest.param("ceph", marks=pytest.mark.slow),
    ]
)
def store(request, use_server, tmp_path) -> str:
    """URL of a folder that is not there yet."""
    return f"{use_server(request.param).url}/{tmp_path.name}"


@pytest.fixture(scope="module")
def shards(dataset, tmp_path_factory):
    """RGB shards on the local disk, what all others are compared with."""
    folder = tmp_path_factory.mktemp("shards") / "out"
    assert exit_code("precompute", dataset, folder, *RGB) == 0
    assert sum(path.stat().st_size > 1 << 16 for path in folder.glob("*.tar")) >= 2
    return folder


def without_etags(folder):
    """Contents of a folder but for the ETags of the videos, which S3 has, and hashes over them."""
    found = {}
    for name, data in folder.items():
        found[name] = data
        if name.endswith(".json"):
            document = json.loads(data)
            for hashed in ("sha256", "manifest"):
                document.pop(hashed, None)
            for sample in (s for shard in document.get("shards", []) for s in shard):
                sample.pop("etag", None)
            found[name] = document
    return found


def test_shards_on_a_server(store, dataset, shards, capsys):
    output = f"{store}/out"
    assert exit_code("precompute", dataset, output, *RGB) == 0
    assert contents(output) == contents(shards)

    # Without its tar, or without its sidecar, a shard is made again.
    files.remove(f"{output}/shard-00000.tar")
    files.remove(f"{output}/shard-00001.json")
    files.remove(f"{output}/failures.csv")
    with pytest.raises(DatasetError, match="2 of 3 shards are not complete"):
        open_dataset(output)
    capsys.readouterr()
    assert exit_code("precompute", dataset, output, *RGB, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["made"], result["already"], result["complete"]) == (2, 1, True)
    assert contents(output) == contents(shards)

    # Other settings are refused.
    assert exit_code("precompute", dataset, output, *RGB, "--quality", "90") == 2
    assert "quality 95" in capsys.readouterr().err
    assert contents(output) == contents(shards)


def test_videos_and_shards_on_a_server(store, dataset, shards, tmp_path):
    """Two processes at once, each with a worker that opens the videos' file system anew."""
    videos, output = f"{store}/val", f"{store}/out"
    upload(dataset, videos)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "i3d", "precompute", videos, output, *RGB],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in ranks] == [0, 0]
    assert without_etags(contents(output)) == without_etags(contents(shards))

    there, here = open_dataset(output), open_dataset(shards)
    assert there.failures() == here.failures()
    assert len(there.failures()) == 1
    for remote, local in zip(there.stream(), here.stream(), strict=True):
        assert remote.info == local.info
        assert remote.rgb == local.rgb
    key = "bowling/large"
    part = there.read_sample(key, start=5, stop=9)
    np.testing.assert_array_equal(part.frames(), here.read_sample(key).frames(5, 9))


def test_flow_of_videos_on_a_server(store, dataset, tmp_path):
    upload(dataset / "archery", f"{store}/val/archery")
    upload(dataset / "archery", str(tmp_path / "val" / "archery"))
    for root in (store, str(tmp_path)):
        assert (
            exit_code("precompute", f"{root}/val", f"{root}/out", *OPTIONS, "--workers", "2") == 0
        )
    there, here = contents(f"{store}/out"), contents(tmp_path / "out")
    assert without_etags(there) == without_etags(here)
    assert open_dataset(f"{store}/out").manifest.streams == ("rgb", "flow")


def test_prediction_from_a_server(store, dataset, tmp_path, capsys):
    """Video and checkpoint are read from there."""
    save(bundles.small_model(), tmp_path / "small.safetensors")
    upload(tmp_path, store)
    upload(dataset / "archery", store)
    predictions = []
    for folder, checkpoint in ((dataset / "archery", tmp_path), (store, store)):
        arguments = [f"{folder}/b c.mp4", "--checkpoint", f"{checkpoint}/small.safetensors"]
        assert exit_code("predict", *arguments, "--device", "cpu", "--json") == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        predictions.append(result["predictions"])
    assert predictions[0] == predictions[1]


def test_what_is_not_there(store, dataset, tmp_path, capsys):
    save(bundles.small_model(), tmp_path / "small.safetensors")
    nothing = f"{store}/nothing"
    for arguments in (
        ["precompute", nothing, tmp_path / "out"],
        ["precompute", dataset, tmp_path / "out", "--classes", f"{nothing}/classes.txt"],
        ["predict", f"{nothing}/x.mp4", "--checkpoint", tmp_path / "small.safetensors"],
    ):
        assert exit_code(*arguments) == 1
        errors = capsys.readouterr().err
        assert nothing in errors
        assert "no such file" in errors or "no file" in errors
        assert len(errors.splitlines()) == 1
    with pytest.raises(DatasetError, match=r"cannot read .*manifest\.json: no such file"):
        open_dataset(nothing)
    assert not files.exists(nothing)
    files.remove(f"{nothing}/x")


def test_of_many_creators_one_succeeds(store, monkeypatch):
    name = f"{store}/manifest.json"
    monkeypatch.setattr(files, "exists", lambda _: False)  # all have looked before any has written
    barrier = threading.Barrier(6)
    won = []

    def creator(i):
        barrier.wait()
        try:
            files.create(name, bytes([i]))
            won.append(i)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=creator, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert contents(store) == {"manifest.json": bytes(won)}


def test_a_file_that_is_replaced_is_always_whole(store):
    """And of two processes that replace it at once, as the last ranks of a job do, none fails."""
    name = f"{store}/failures.csv"
    versions = [bytes([i]) * (150_000 + i) for i in range(2)]
    files.write(name, versions[0])
    code = (
        "import sys; from i3d import files\n"
        "data = bytes([int(sys.argv[2])]) * (150_000 + int(sys.argv[2]))\n"
        "for _ in range(15): files.write(sys.argv[1], data)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, name, str(i)]) for i in range(2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        try:
            data = files.read_range(name, 0, 1 << 20)
        except OSError:
            # Opened, and replaced before it was read. The name itself is never without a file.
            assert files.exists(name)
            continue
        assert data in versions
        seen.add(data[0])
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen == {0, 1}
    assert files.names_in(store) == ["failures.csv"]


def first_byte(queue, name):
    try:
        queue.put(files.read_range(name, 0, 1))
    except RuntimeError as error:
        queue.put(str(error))


def test_a_forked_process_reads_or_says_why_not(store):
    """It never hangs, though its parent has used the server."""
    files.write(f"{store}/x", b"1")
    assert files.read_range(f"{store}/x", 0, 1) == b"1"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=first_byte, args=(queue, f"{store}/x"))
    process.start()
    try:
        answer = queue.get(timeout=20)
    finally:
        process.kill()
        process.join()
    if store.startswith("hdfs"):
        assert "start worker processes with 'spawn'" in answer
    else:
        assert answer == b"1"


@pytest.mark.slow
@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://i3d.invalid"])
def test_s3_that_does_not_answer(address, tmp_path, monkeypatch, capsys):
    forget_servers()
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "i3d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "i3d")
    start = time.monotonic()
    assert exit_code("precompute", "s3://i3d/val", tmp_path / "out") == 1
    assert time.monotonic() - start < 15
    (line,) = capsys.readouterr().err.splitlines()
    assert "s3://i3d" in line
