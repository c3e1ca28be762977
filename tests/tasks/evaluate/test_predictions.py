"""Logits on disk: what is written reads back, and what was changed is refused."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i3d.data.shards import Failure
from i3d.errors import DatasetError, UsageError
from i3d.records import seal_archive
from i3d.tasks.evaluate.parts import Part, Parts, Plan
from i3d.tasks.evaluate.predictions import (
    About,
    Predictions,
    fuse,
    read_predictions,
    write_predictions,
)
from i3d.tasks.network import UsedCheckpoint

CLASSES = ("abseiling", 'say "cheese", please', "日本")


def about(streams=("rgb", "flow"), **changes):
    checkpoints = {s: UsedCheckpoint(f"{s}.npz", "", s[0] * 64) for s in streams}
    values = {
        "dataset": "val",
        "classes": CLASSES,
        "preset": "kinetics-i3d",
        "frames": 250,
        "clips": 1,
        "crops": 1,
        "precision": "fp32",
        "checkpoints": checkpoints,
        "versions": {"torch": "2.13"},
    }
    return About(**values | changes)


def predictions(streams=("rgb", "flow"), videos=("a/1", "b,2", "c"), seed=0, skipped=()):
    rng = np.random.default_rng(seed)
    logits = {s: rng.normal(0, 9, (len(videos), 3)).astype(np.float32) for s in streams}
    failures = tuple(Failure(key, "damaged") for key in skipped)
    what = about(streams, found=len(videos) + len(skipped), skipped=failures)
    return Predictions(what, tuple(videos), np.arange(len(videos)) % 3, logits)


def same(one, other):
    assert (one.about, one.videos) == (other.about, other.videos)
    np.testing.assert_array_equal(one.targets, other.targets)
    assert list(one.logits) == list(other.logits)
    for stream, logits in one.logits.items():
        assert other.logits[stream].dtype == np.float32
        np.testing.assert_array_equal(other.logits[stream], logits)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("streams", [("rgb",), ("flow",), ("rgb", "flow")])
def test_round_trip(tmp_path, suffix, streams):
    table = predictions(streams, skipped=["bad"])
    write_predictions(tmp_path / f"p.{suffix}", table)
    same(table, read_predictions(tmp_path / f"p.{suffix}"))


def test_what_others_read(tmp_path):
    """Parquet by pyarrow and CSV by the csv module, with the documented columns."""
    table = predictions()
    write_predictions(tmp_path / "p.parquet", table)
    read = pq.read_table(tmp_path / "p.parquet")
    assert read.column_names == ["video", "class", "index", "rgb_logits", "flow_logits"]
    assert read["class"].to_pylist() == list(CLASSES)
    assert read.schema.field("rgb_logits").type == pa.list_(pa.float32())
    np.testing.assert_array_equal(np.array(read["flow_logits"].to_pylist()), table.logits["flow"])
    write_predictions(tmp_path / "p.csv", table)
    with (tmp_path / "p.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["video"] for row in rows] == ["a/1", "b,2", "c"]
    assert np.float32(rows[1]["flow_logits_2"]) == table.logits["flow"][1, 2]


def test_fusing_matches_by_video():
    rgb = predictions(("rgb",), videos=("a", "b", "c", "d"), skipped=["e"])
    flow = predictions(("flow",), videos=("d", "a", "e"), seed=1, skipped=["b"])
    flow = replace(flow, targets=np.array([0, 0, 1]))
    fused = fuse([rgb, flow], ["rgb.csv", "flow.csv"])
    assert fused.videos == ("a", "d")
    np.testing.assert_array_equal(fused.logits["rgb"], rgb.logits["rgb"][[0, 3]])
    np.testing.assert_array_equal(fused.logits["flow"], flow.logits["flow"][[1, 0]])
    assert [s.key for s in fused.about.skipped] == ["b", "c", "e"]
    assert fused.about.found == 5 == len(fused) + len(fused.about.skipped)
    assert set(fused.about.checkpoints) == {"rgb", "flow"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": "rgb"}, "flow.csv holds rgb logits"),
        ({"targets": np.array([2, 1, 0])}, "another truth"),
        ({"classes": ("x", "y", "z")}, "other classes"),
        ({"preset": "kinetics-i3d-128"}, "other preset"),
        ({"videos": ("x", "y", "z")}, "no video in common"),
    ],
)
def test_what_does_not_fuse(change, message):
    flow = predictions(("rgb",) if change.pop("logits", None) else ("flow",))
    for name in set(change) & {"classes", "preset"}:
        flow = replace(flow, about=replace(flow.about, **{name: change.pop(name)}))
    flow = replace(flow, **change)
    with pytest.raises(UsageError, match=message):
        fuse([predictions(("rgb",)), flow], ["rgb.csv", "flow.csv"])


def test_a_changed_csv_is_refused(tmp_path):
    path = tmp_path / "p.csv"
    table = predictions()
    write_predictions(path, table)
    good = path.read_text()

    def refused(text, message):
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            read_predictions(path)

    lines = good.splitlines(keepends=True)
    refused(lines[0] + "".join(lines[2:]), "3 that were found")
    refused(good.replace("flow_logits_2", "flow_logits_9"), "columns")
    refused("".join([*lines[:3], lines[2], lines[3]]), "twice")
    refused(good.replace('"b,2",', "b,2,"), "line 3")
    refused(
        good.replace(str(table.logits["rgb"][0, 0]), "nan"), "line 2: rgb_logits, class 0 is nan"
    )
    refused(good.replace("日本,2,", "日本,7,"), "line 4: index is 7, not one of its 3 classes")
    path.write_text(good)
    (tmp_path / "p.csv.json").unlink()
    with pytest.raises(DatasetError, match=r"p\.csv\.json is missing"):
        read_predictions(path)


def test_parquet_of_others_is_refused(tmp_path):
    path = tmp_path / "p.parquet"
    with pytest.raises(DatasetError, match="no such file"):
        read_predictions(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match="not a readable Parquet"):
        read_predictions(path)
    pq.write_table(pa.table({"video": ["a"]}), path)
    with pytest.raises(DatasetError, match="i3d did not write"):
        read_predictions(path)
    write_predictions(path, predictions())
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["index"]), path)
    with pytest.raises(DatasetError, match="column index is absent, and has to be int64"):
        read_predictions(path)
    ragged = pa.array([[1.0], [2.0, 3.0], [4.0]], pa.list_(pa.float32()))
    pq.write_table(table.set_column(3, "rgb_logits", ragged), path)
    with pytest.raises(DatasetError, match="row 1: rgb_logits has 1 values for 3 classes"):
        read_predictions(path)


def test_other_suffixes(tmp_path):
    with pytest.raises(UsageError, match=r"\.parquet or \.csv"):
        write_predictions(tmp_path / "p.json", predictions())


THREADS = """
import os, sys
from i3d.tasks.evaluate.predictions import read_predictions
import pyarrow.parquet
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
read_predictions(sys.argv[1])
print(before, count())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_reading_parquet_starts_no_thread(tmp_path):
    """One that still holds the Python file when the interpreter ends aborts the process."""
    write_predictions(tmp_path / "p.parquet", predictions())
    script = [sys.executable, "-c", THREADS, str(tmp_path / "p.parquet")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert before == after


# --- parts ----------------------------------------------------------------------------------------


PLAN = Plan.of([f"v{i}" for i in range(8)], [0] * 8)


def open_parts(target, rank=0, plan=PLAN, **changes):
    return Parts(target, about(**changes), plan, rank=rank)


def part(streams=("rgb", "flow")):
    logits = {s: np.arange(6, dtype=np.float32).reshape(2, 3) for s in streams}
    return Part((4, 7), logits, ((5, "broken: 日本"),))


def test_parts_of_all_ranks_are_read_and_removed(tmp_path):
    target = tmp_path / "p.parquet"
    for rank in (0, 1):
        parts = open_parts(target, rank)
        parts.write(part())
        parts.write(part())
    with pytest.raises(UsageError, match=r"p\.parquet\.parts holds an unfinished.*--no-resume"):
        open_parts(target).refuse()
    again = open_parts(target, 1)
    read = again.read()
    assert len(read) == 4
    for one in read:
        assert (one.videos, one.skipped) == (part().videos, part().skipped)
        np.testing.assert_array_equal(one.logits["flow"], part().logits["flow"])
    again.write(part())  # beside the earlier ones of this rank, over none
    assert len(again.read()) == 5
    again.remove()
    assert not (tmp_path / "p.parquet.parts").exists()
    open_parts(target).refuse()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"frames": 64}, "frames: 250, now 64"),
        ({"precision": "bf16"}, "precision"),
        ({"checkpoints": {"rgb": UsedCheckpoint("rgb.npz", "", "0" * 64)}}, "weights_sha256"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, change, named):
    open_parts(tmp_path / "p.csv").write(part())
    with pytest.raises(UsageError, match=f"other settings: .*{named}"):
        open_parts(tmp_path / "p.csv", **change).read()
    open_parts(tmp_path / "p.csv", versions={"torch": "3"}).read()


def test_resuming_with_other_videos_is_refused(tmp_path):
    """The parts have numbers: with a video more, they would be other videos'."""
    open_parts(tmp_path / "p.csv").write(part())
    other = Plan.of(["new", *(f"v{i}" for i in range(7))], [0] * 8)
    relabelled = Plan.of([f"v{i}" for i in range(8)], [1] * 8)
    for plan in (other, relabelled):
        with pytest.raises(UsageError, match=r"part-00000-00000\.npz was written for other videos"):
            open_parts(tmp_path / "p.csv", plan=plan).read()


def edited(path, seal=False, compressed=False, **changes):
    """The part with other arrays, as anyone can write it."""
    with np.load(path) as arrays:
        (np.savez_compressed if compressed else np.savez)(path, **dict(arrays) | changes)
    if seal:
        with path.open("r+b") as file:
            seal_archive(file)


def test_an_edited_part_is_named(tmp_path):
    parts = open_parts(tmp_path / "p.csv")
    parts.write(part())
    (path,) = (tmp_path / "p.csv.parts").iterdir()
    edited(path, rgb_logits=np.full((2, 3), np.nan, np.float32))
    words = r"part-00000-00000\.npz is damaged or was edited.*delete it and run"
    with pytest.raises(DatasetError, match=words):
        parts.read()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"videos": np.array([4, 8])}, "video 8 of 8"),
        ({"videos": np.array([-1, 4])}, "video -1 of 8"),
        ({"videos": np.array([4.5, 7])}, "video 4.5 of 8"),
        ({"videos": np.array([4, 4])}, "twice"),
        ({"videos": np.array([5, 7])}, "twice"),  # skipped, too
        ({"skipped": np.array([99])}, "video 99 of 8"),
        ({"rgb_logits": np.zeros((3, 3), np.float32)}, "another shape"),
    ],
)
def test_a_part_that_contradicts_the_plan(tmp_path, changes, words):
    """Anyone can seal."""
    parts = open_parts(tmp_path / "p.csv")
    parts.write(part())
    (path,) = (tmp_path / "p.csv.parts").iterdir()
    edited(path, seal=True, **changes)
    with pytest.raises(DatasetError, match=f"is damaged .*{words}.*delete it and run"):
        parts.read()


def test_a_part_is_bounded(tmp_path, monkeypatch):
    parts = open_parts(tmp_path / "p.csv")
    parts.write(part())
    (path,) = (tmp_path / "p.csv.parts").iterdir()
    whole = path.read_bytes()
    edited(path, seal=True, compressed=True, more=np.zeros(1 << 20, np.uint8))
    with pytest.raises(DatasetError, match=r"would unpack to 1,.* bytes from .*delete it"):
        parts.read()
    path.write_bytes(whole)
    monkeypatch.setattr("i3d.tasks.evaluate.parts.MAX_SMALL_BYTES", -(8 * (1 << 13)))
    with pytest.raises(DatasetError, match=r"has more than 192 bytes; delete it"):
        parts.read()


def test_coreutils_check_the_seal_of_a_part(tmp_path):
    open_parts(tmp_path / "p.csv").write(part())
    (path,) = (tmp_path / "p.csv.parts").iterdir()
    line = f"test $(head -c -64 {path} | sha256sum | cut -c 1-64) = $(tail -c 64 {path})"
    subprocess.run(["bash", "-c", line], check=True)


def test_of_two_runs_at_once_each_removes_what_it_wrote(tmp_path):
    one, other = open_parts(tmp_path / "p.csv"), open_parts(tmp_path / "p.csv")
    one.write(part())
    other.write(part())
    one.remove()
    assert other.read() == []
    other.write(part())
    other.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [slice(0, 100), slice(200, None), "pickle"])
def test_damaged_parts(tmp_path, damage):
    parts = open_parts(tmp_path / "p.csv")
    parts.write(part())
    (path,) = (tmp_path / "p.csv.parts").iterdir()
    if damage == "pickle":
        np.savez(path, about=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[damage])
    with pytest.raises(DatasetError, match=r"damaged.*delete it"):
        parts.read()


def test_the_settings_in_a_csv_are_distrusted(tmp_path):
    path = tmp_path / "p.csv"
    write_predictions(path, predictions())
    beside = tmp_path / "p.csv.json"
    document = json.loads(beside.read_text())
    for change in ({"frames": "250"}, {"classes": 3}, {"format": "other"}, {"found": -1}):
        beside.write_text(json.dumps({**document, **change}))
        with pytest.raises(DatasetError):
            read_predictions(path)
