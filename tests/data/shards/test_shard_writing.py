"""Writing: the same bytes each time, whole or not at all."""

import csv
import errno
import hashlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from support.shards import (
    HEIGHT,
    KEYS,
    WIDTH,
    add,
    encoded,
    plan,
    read_all,
    spool,
    video,
    write_folder,
)

from i3d import files
from i3d.data.shards import (
    Failure,
    ShardIndex,
    complete_shards,
    finish_folder,
    open_dataset,
    read_manifest,
    write_manifest,
    write_shard,
)
from i3d.data.shards.pictures import encode_flow, encode_rgb
from i3d.data.shards.writer import make_header
from i3d.errors import DatasetError, UsageError


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_folder(tmp_path / name, failed=KEYS[:1])
    before = read_all(tmp_path / "a")
    assert before == read_all(tmp_path / "b")
    assert len(before) == 2 + 2 * 3  # and nothing temporary
    for data in before.values():
        assert str(tmp_path).encode() not in data


def test_the_format_is_frozen(written):
    """Another value means another format: old shards would not read, or not resume."""
    short, long = (make_header(f"{key}.json", 12345) for key in (KEYS[0], KEYS[3]))
    assert hashlib.sha256(short + long).hexdigest() == (
        "7ee7b625ba3929c990bc5743cf87b95740d30b73f8706213822dab65824bde1b"
    )
    assert plan().seal == "a4d6cd13b57d1186942be2e4b4c277cb4a2f9d71a631f613c76cd4b872619b18"
    index = ShardIndex(plan().seal, 0, 1024, "0" * 64, (), (Failure("a", "b"),))
    assert hashlib.sha256(index.to_json()).hexdigest() == (
        "61827cbc5a22f66268ea4e1afbf663d8c7ed7ae4f3d8a5a71cfade6f1a648abb"
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(folder, error):
    manifest = plan()
    write_manifest(folder, manifest)
    with pytest.raises(error), write_shard(folder, manifest, 0) as writer:
        add(writer, manifest.shards[0][0].key)
        raise error
    assert files.names_in(folder) == ["manifest.json"]
    assert complete_shards(folder, manifest) == []


def test_a_tar_without_a_sidecar_is_made_again(folder, monkeypatch):
    manifest = plan()
    write_folder(folder, manifest)
    files.remove(files.join(folder, "shard-00001.json"))

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", die)
        with pytest.raises(KeyboardInterrupt), write_shard(folder, manifest, 1) as writer:
            for sample in manifest.shards[1]:
                add(writer, sample.key)
    names = files.names_in(folder)
    assert "shard-00001.tar" in names and "shard-00001.json" not in names
    assert complete_shards(folder, manifest) == [0, 2]
    assert not finish_folder(folder, manifest)
    with pytest.raises(DatasetError, match=r"1 of 3 shards .* lacks shard-00001\.json"):
        open_dataset(folder)


def test_what_is_complete_stays_so_while_it_is_written_again(folder, monkeypatch):
    """Another run may be reading it, or have just said that all is complete."""
    manifest = plan()
    write_folder(folder, manifest)

    def refuse(location):
        raise AssertionError(f"{location} is removed")

    monkeypatch.setattr(files, "remove", refuse)
    with write_shard(folder, manifest, 1) as writer:
        for sample in manifest.shards[1]:
            add(writer, sample.key)
    assert complete_shards(folder, manifest) == [0, 1, 2]


def test_of_two_runs_at_once_both_end_with_the_whole_folder(tmp_path):
    manifest = plan()
    write_folder(tmp_path / "one")
    folder = tmp_path / "two"
    write_manifest(folder, manifest)
    with write_shard(folder, manifest, 0) as slow:
        add(slow, manifest.shards[0][0].key)
        write_folder(folder)  # the other run begins, ends and tidies up
        assert read_all(folder) == read_all(tmp_path / "one")
        add(slow, manifest.shards[0][1].key)
    assert finish_folder(folder, manifest)
    assert read_all(folder) == read_all(tmp_path / "one")


def test_a_run_whose_open_file_was_removed_on_nfs_takes_the_other_ones(tmp_path):
    manifest = plan()
    with write_shard(tmp_path, manifest, 0) as slow:
        add(slow, manifest.shards[0][0].key)
        write_folder(tmp_path)
        raise OSError(errno.ESTALE, "Stale file handle")  # what the next write gives
    assert finish_folder(tmp_path, manifest)
    with (
        pytest.raises(OSError, match="Stale"),
        write_shard(tmp_path / "alone", manifest, 0),
    ):
        raise OSError(errno.ESTALE, "Stale file handle")


def test_temporary_files_stay_while_a_shard_is_not_complete(written):
    temporary = written / ".shard-00001.0123456789ab.tmp.tar"
    temporary.touch()
    tar = written / "shard-00001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    assert not finish_folder(written, plan())
    assert temporary.exists()
    tar.write_bytes(whole)
    for name in ("manifest.json", "failures.csv", "shard-00000.json"):
        stem, suffix = name.split(".")
        (written / f".{stem}.0123456789ab.tmp.{suffix}").touch()
    (written / ".theirs.0123456789ab.tmp.tar").touch()  # of no file of ours
    assert finish_folder(written, plan())
    assert {n for n in read_all(written) if n[0] == "."} == {".theirs.0123456789ab.tmp.tar"}


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from support.shards import add, plan
from i3d.data.shards import write_manifest, write_shard
manifest = plan()
write_manifest(sys.argv[1], manifest)
with write_shard(sys.argv[1], manifest, 0) as writer:
    add(writer, manifest.shards[0][0].key)
    os.kill(os.getpid(), 9)
"""


def test_kill_9_and_again_gives_the_same_folder(tmp_path):
    folder = tmp_path / "killed"
    tests = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), tests], check=False)
    assert done.returncode == -9
    assert len(list(folder.iterdir())) == 2  # the manifest, and what the writer left behind
    assert complete_shards(folder, plan()) == []
    write_folder(folder)
    write_folder(tmp_path / "undisturbed")
    assert read_all(folder) == read_all(tmp_path / "undisturbed")


def test_the_writer_keeps_to_the_plan(tmp_path):
    manifest = plan()
    first, second = (sample.key for sample in manifest.shards[0])
    rgb, flow = video(first)
    jpegs, pngs = encoded(first)
    with pytest.raises(UsageError, match="was planned"), write_shard(tmp_path, manifest, 0) as w:
        add(w, second)
    with (
        pytest.raises(UsageError, match="neither added nor failed"),
        write_shard(tmp_path, manifest, 0) as w,
    ):
        w.fail(first, "x")
    broken = io.BytesIO(b"x" * sum(map(len, jpegs)))
    bad = [
        (spool([]), spool([]), "at least one frame"),
        (spool(jpegs), None, "the manifest has rgb and flow"),
        (spool(jpegs), spool(pngs[1:]), "one flow less"),
        (spool([*jpegs[:3], encode_rgb(rgb[0, 1:])]), spool(pngs), "frame 3 .* of 16x11"),
        (spool(jpegs), spool([*pngs[:2], encode_flow(flow[0, 1:])]), "flow 2"),
        ((spool(jpegs)[0], broken), spool(pngs), "picture 0 is not in its file"),
    ]
    with write_shard(tmp_path, manifest, 0) as w:
        for jpegs_, pngs_, message in bad:
            with pytest.raises(DatasetError, match=message) as caught:
                w.add(first, rgb=jpegs_, flow=pngs_, height=HEIGHT, width=WIDTH)
            assert first in str(caught.value)
        w.fail(first, "bad pictures")
        size = add(w, second)
        with pytest.raises(UsageError, match="no sample was planned"):
            w.fail(first, "again")
    assert (tmp_path / "shard-00000.tar").stat().st_size == size + 1024
    with pytest.raises(UsageError, match="preset"), write_shard(tmp_path, plan(preset="?"), 0):
        pass
    assert sorted([p.name for p in tmp_path.iterdir()]) == ["shard-00000.json", "shard-00000.tar"]


def test_failures_are_counted(folder):
    manifest = write_folder(folder, failed=[KEYS[4], KEYS[0]])
    with files.open_read(files.join(folder, "failures.csv")) as f:
        text = f.read().decode()
    assert list(csv.reader(io.StringIO(text))) == [
        ["video", "reason"],
        [KEYS[0], "no video stream"],
        [KEYS[4], "no video stream"],
    ]
    dataset = open_dataset(folder)
    read = [sample.key for sample in dataset.stream()]
    assert len(read) + len(dataset.failures()) == dataset.found == 6
    with pytest.raises(DatasetError, match="not precomputed: no video stream"):
        dataset.read_sample(KEYS[0])
    with pytest.raises(DatasetError, match="no video 'nothing'"):
        dataset.read_sample("nothing")
    assert complete_shards(folder, manifest) == [0, 1, 2]
    assert complete_shards(folder, manifest, shards=[2]) == [2]


def test_a_shard_of_failures_alone(tmp_path):
    manifest = write_folder(tmp_path, failed=KEYS)
    assert list(open_dataset(tmp_path).stream()) == []
    assert complete_shards(tmp_path, manifest) == [0, 1, 2]


def test_a_partial_folder(written):
    (written / "shard-00001.tar").unlink()
    manifest = read_manifest(written)
    with pytest.raises(DatasetError, match=r"1 of 3 shards .* lacks shard-00001\.tar.*--partial"):
        open_dataset(written)
    dataset = open_dataset(written, partial=True)
    lost = sorted(sample.key for sample in manifest.shards[1])
    assert dataset.shards == (0, 2)
    assert [failure.key for failure in dataset.failures()] == lost
    assert dataset.found == len(list(dataset.stream())) + len(lost)
    with pytest.raises(DatasetError, match="shard is missing"):
        dataset.read_sample(lost[0])


def test_no_folder(tmp_path):
    with pytest.raises(DatasetError, match="no such file"):
        open_dataset(tmp_path / "nothing")
    assert complete_shards(tmp_path / "nothing", plan()) == []
