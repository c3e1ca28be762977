"""Servers that fail, and names that are no files: what is recorded and what ends the job."""

import csv
import json
import os
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.command import exit_code
from support.videos import video_bytes, write_video
from support.web import WebServer

from i3d.data.shards import open_dataset

OPTIONS = ["--short-side", "48", "--no-flow", "--workers", "1", "--clips-per-shard", "1"]
OPTIONS += ["--classes", "kinetics400"]
NAMES = ["archery/a", "bowling/b", "bowling/c"]


@pytest.fixture
def server():
    with WebServer() as server:
        server.files = {f"/{name}.mp4": video_bytes(5 + i) for i, name in enumerate(NAMES)}
        yield server


def write_list(folder, url, names=NAMES):
    path = folder / "list.txt"
    path.write_text("".join(f"{url}/{name}.mp4 {name.partition('/')[0]}\n" for name in names))
    return path


def failures(folder):
    with (folder / "failures.csv").open() as file:
        return [(row["video"], row["reason"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("status", [403, 503])
def test_a_server_that_fails_ends_the_job_and_seals_nothing(server, tmp_path, status, capsys):
    table, output = write_list(tmp_path, server.url), tmp_path / "out"
    server.failures["/bowling/b.mp4"] = (status, {"Retry-After": "3600"})
    assert exit_code("precompute", table, output, *OPTIONS) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"i3d: cannot read {server.url}/bowling/b.mp4: HTTP {status} ")
    made = {p.name for p in output.glob("shard-*.tar")}
    assert len(made) < len(NAMES)
    assert not (output / "failures.csv").exists()

    del server.failures["/bowling/b.mp4"]
    assert exit_code("precompute", table, output, *OPTIONS, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["complete"], result["failed"], result["already"]) == (True, [], len(made))
    assert len(list(open_dataset(output).stream())) == len(NAMES)


def test_what_is_absent_is_a_recorded_failure(server, tmp_path):
    table, output = write_list(tmp_path, server.url), tmp_path / "out"
    del server.files["/bowling/b.mp4"]
    assert exit_code("precompute", table, output, *OPTIONS) == 0
    reason = "cannot open b.mp4: no such file (HTTP 404 Not Found)"
    assert failures(output) == [("bowling/b", reason)]
    assert len(list(open_dataset(output).stream())) == 2


def test_a_web_servers_folder_is_a_dataset(server, tmp_path):
    """Python's own server lists folders, redirects to them, and knows no byte ranges."""
    for name, data in server.files.items():
        path = tmp_path / "k 400" / name.strip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = partial(quiet, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as theirs:
        thread = threading.Thread(target=theirs.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{theirs.server_port}/k%20400"
            assert exit_code("precompute", url, tmp_path / "out", *OPTIONS) == 0
        finally:
            theirs.shutdown()
            thread.join()
    assert exit_code("precompute", tmp_path / "k 400", tmp_path / "same", *OPTIONS) == 0
    there, here = open_dataset(tmp_path / "out"), open_dataset(tmp_path / "same")
    assert [(s.info, s.rgb) for s in there.stream()] == [(s.info, s.rgb) for s in here.stream()]


def test_a_password_is_in_no_output(server, tmp_path, capsys):
    """Two servers, so that the host is part of the keys."""
    secret = server.url.replace("://", "://me:s3cret@")
    other = server.url.replace("127.0.0.1", "localhost").replace("://", "://me:s3cret@")
    lines = f"{secret}/archery/a.mp4 archery\n{other}/bowling/b.mp4 bowling\n"
    lines += f"{secret}/bowling/none.mp4 bowling\n"
    (tmp_path / "list.txt").write_text(lines)
    output = tmp_path / "out"
    assert exit_code("precompute", tmp_path / "list.txt", output, *OPTIONS, "--json") == 0
    said = capsys.readouterr()
    texts = [said.out, said.err, *(p.read_text() for p in output.iterdir() if p.suffix != ".tar")]
    for text in texts:
        assert "s3cret" not in text
    assert len(failures(output)) == 1
    (tmp_path / "list.txt").write_text(f"{secret}/archery/a.gif?token=s3cret archery\n")
    assert exit_code("precompute", tmp_path / "list.txt", output, *OPTIONS) == 1
    assert re.search(r"does not name a video", error := capsys.readouterr().err)
    assert "s3cret" not in error


def test_what_is_no_file_is_skipped_with_its_reason(tmp_path):
    write_video(tmp_path / "val/archery/a.mp4", 5)
    os.mkfifo(tmp_path / "val/archery/fifo.mp4")
    (tmp_path / "val/bowling/folder.mp4").mkdir(parents=True)
    (tmp_path / "val/bowling/device.mp4").symlink_to("/dev/zero")
    write_video(tmp_path / "elsewhere.mp4", 5)
    (tmp_path / "val/bowling/link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    assert exit_code("precompute", tmp_path / "val", tmp_path / "out", *OPTIONS) == 0
    assert failures(tmp_path / "out") == [
        (
            "archery/fifo",
            "cannot open archery/fifo.mp4: not a regular file (a FIFO)",
        ),
        (
            "bowling/device",
            "cannot open bowling/device.mp4: not a regular file (a character device)",
        ),
    ]
    assert len(list(open_dataset(tmp_path / "out").stream())) == 2


def test_tables_that_are_no_files_are_refused(tmp_path, capsys):
    fifo = tmp_path / "fifo.csv"
    os.mkfifo(fifo)
    write_video(tmp_path / "val/archery/a.mp4", 5)
    videos, output = tmp_path / "val", tmp_path / "out"
    options = [o for o in OPTIONS if o not in ("--classes", "kinetics400")]
    for arguments in (
        [fifo, output],
        [videos, output, "--classes", fifo],
        [videos / "archery", output, "--annotations", fifo],
    ):
        assert exit_code("precompute", *arguments, *options) == 1
        error = capsys.readouterr().err
        assert error == f"i3d: cannot read {fifo}: not a regular file (a FIFO)\n"


def test_names_that_look_like_something_else(tmp_path):
    names = ["~x", "-x", "50%", "a#b", "c?d", "e f", "g\nh", "http:", "*"]
    for name in names:
        write_video(tmp_path / "val/archery" / f"{name}.mp4", 5)
    assert exit_code("precompute", tmp_path / "val", tmp_path / "out", *OPTIONS) == 0
    assert failures(tmp_path / "out") == []
    assert len(list(open_dataset(tmp_path / "out").stream())) == len(names)
