"""A disk that is full: one line, nothing temporary left, and the same command goes on."""

import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from campaigns.chaos.inputs import RELEASED, make_inputs, released_record
from support.command import exit_code
from support.disks import PAGE, lacks_mounts, mount_small, resize, unmount

from i3d import files
from i3d.models import fetch
from i3d.models.released import CHECKPOINTS

CPU = "--device cpu --workers 0"
FEATURES = "features {inputs}/videos {out}/%s --checkpoint {inputs}/rgb.safetensors --window 16"
FEATURES += f" --short loop {CPU}"
EVALUATE = "evaluate {inputs}/shards --rgb-checkpoint {inputs}/rgb.safetensors --frames 16"
EVALUATE += f" --predictions {{out}}/logits.%s {CPU}"
COMMANDS = {
    "precompute": "precompute {inputs}/videos {out}/shards --classes folders --short-side 32"
    " --clips-per-shard 2 --no-flow --workers 1",
    "convert-shards": "convert-shards {inputs}/zips {out}/shards --clips-per-shard 2 --workers 1",
    "evaluate": EVALUATE % "parquet" + " --output {out}/report.json --report {out}/page.html",
    "evaluate-csv": EVALUATE % "csv",
    "features": FEATURES % "features",
    "features-npy": FEATURES % "features --format npy",
    "features-parquet": FEATURES % "features.parquet",
    "features-hdf5": FEATURES % "features.h5",
    "fvd": "fvd {inputs}/real.npy {inputs}/fake.npy --checkpoint {inputs}/rgb.safetensors"
    f" --frames 10 --save-statistics {{out}}/real.npz --output {{out}}/fvd.json {CPU}",
    "train": "train {inputs}/shards --output {out}/run --stream rgb --frames 9 --width 0.125"
    f" --batch-size 4 --epochs 1 {CPU}",
    "convert": "convert {inputs}/rgb.safetensors {out}/rgb.npz",
    "download": f"checkpoints download {RELEASED} --url {{inputs}}/mirror",
    "predict": "predict {inputs}/videos/archery/0.mp4 --checkpoint {inputs}/rgb.safetensors"
    " --plot {out}/plot.png --device cpu",
    "predict-map": "predict {inputs}/videos/archery/0.mp4 --checkpoint {inputs}/rgb.safetensors"
    " --map {out}/map.mp4 --device cpu",
    "export": "export {inputs}/rgb.safetensors {out}/rgb.onnx",
    "export-pt2": "export {inputs}/rgb.safetensors {out}/rgb.pt2",
}
SLOW = ("export-pt2",)
PLENTY = 1 << 30
PAGES_OF_PARTS = dict.fromkeys(["features-parquet", "features-hdf5"], 15)  # and one of the file
TIMED = ("report.json", "page.html", "run/tensorboard")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def run(inputs, monkeypatch, capsys):
    """Function: name of a command, folder -> (exit code, lines of standard error)."""
    record = replace(CHECKPOINTS[RELEASED], **json.loads(released_record(inputs)))
    monkeypatch.setitem(CHECKPOINTS, RELEASED, record)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 1 << 14)

    def run(name, folder):
        monkeypatch.setenv("I3D_CACHE", f"{folder}/cache")
        words = [word.format(inputs=inputs, out=folder) for word in COMMANDS[name].split()]
        return exit_code(*words), capsys.readouterr().err.splitlines()

    return run


class SmallDisk:
    """A folder in which there is little room.

    Where no disk can be mounted files have a limit, whose errors come as late and as the same kind.
    """

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.mounted = lacks_mounts() is None
        if self.mounted:
            mount_small(folder, PLENTY)
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def rooms(self, name, whole):
        """Bytes that are too few for a command, which writes what is in this folder."""
        sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
        if not self.mounted:
            return [max(sizes) // 2, max(sizes) - 1]
        pages = [-(-size // PAGE) for size in sizes]
        rooms = {1, max(pages) // 2, sum(pages) - 1, PAGES_OF_PARTS.get(name, 1)}
        return [PAGE * room for room in sorted(rooms) if room]

    def leave(self, room):
        """Leave so many bytes, of which some are taken already."""
        if self.mounted:
            resize(self.folder, room)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, self._limits[1]))

    def make_room(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        if self.mounted:
            resize(self.folder, PLENTY)

    def end(self):
        self.make_room()
        if self.mounted:
            unmount(self.folder)


@pytest.fixture
def disk(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.end()


def contents(folder):
    """Name -> bytes of every file, where those do not tell how long it took."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix().partition("/events.out.")[0]
        if path.is_file():
            found[name] = None if name in TIMED else path.read_bytes()
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in COMMANDS]
)
def test_the_same_command_goes_on(name, run, disk, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    code, said = run(name, whole)
    assert code == 0, said
    for room in disk.rooms(name, whole):
        disk.leave(room)
        code, said = run(name, disk.folder)
        disk.make_room()
        assert code == 1, (room, said)
        error = said.pop()
        assert re.match(rf"i3d: {disk.folder}/\S+: .*(No space left|too large).* run again", error)
        assert not any(line.startswith(("i3d: ", "Traceback")) for line in said), said
        assert not [path for path in disk.folder.rglob("*") if files.final_name(path.name)]
    code, said = run(name, disk.folder)
    assert code == 0, said
    assert contents(disk.folder) == contents(whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_standard_output_and_error_may_be_files_there(inputs):
    command = [sys.executable, "-m", "i3d", "precompute", str(inputs / "videos"), "--dry-run"]
    command += ["--classes", "folders", "--no-flow", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1
        assert re.match("i3d: standard output: No space left .* run again", last)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)
