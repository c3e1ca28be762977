"""What jobs keep and read again, arrays of others, tables of text: annotations, lists, classes."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from campaigns.fuzz.cases import Target, Wrong, check_finite
from campaigns.fuzz.checkpoints import (
    falsify_members,
    hostile_array,
    hostile_npy,
    hostile_zip,
    npz,
    replaced,
    torch_bytes,
)
from campaigns.fuzz.folders import made_in, seal, unseal
from campaigns.fuzz.mutations import (
    NAMES,
    Files,
    damage,
    dump,
    hostile_bytes,
    hostile_json,
    hostile_pickle,
    hostile_table,
    hostile_value,
)

from i3d.classes import class_list
from i3d.console import json_text
from i3d.data.arrays import open_arrays
from i3d.data.footage.opening import open_footage
from i3d.data.kinetics import read_dataset
from i3d.data.shards import Failure, PlannedSample
from i3d.metrics.frechet import Moments
from i3d.records import plain, seal_archive
from i3d.tasks.evaluate.parts import Part, Plan
from i3d.tasks.evaluate.predictions import About, Predictions, read_predictions, write_predictions
from i3d.tasks.evaluate.result import Evaluation
from i3d.tasks.features.files import FeatureFolder, FeatureSettings, Rows, VideoAbout
from i3d.tasks.features.merged import merge, read_merged
from i3d.tasks.fvd.clip_sets import ClipSet, Piece
from i3d.tasks.fvd.protocols import change_protocol
from i3d.tasks.fvd.result import Tally, make_record
from i3d.tasks.fvd.run import fvd
from i3d.tasks.fvd.statistics import WeightsRecord, write_statistics
from i3d.tasks.network import UsedCheckpoint


def sealed(data: bytes) -> bytes:
    """An archive under a right seal."""
    buffer = io.BytesIO(data)
    seal_archive(buffer)
    return buffer.getvalue()


def reopened(random: Random, table: pa.Table) -> bytes:
    """A table as Parquet, in one of its forms."""
    out = io.BytesIO()
    pq.write_table(table, out, compression=random.choice(["zstd", "none", "snappy"]))
    return out.getvalue()


def hostile_columns(random: Random, data: bytes, about: Any) -> bytes:
    """Parquet whose columns or metadata are others."""
    table = pq.read_table(io.BytesIO(data))
    names = table.column_names
    i = random.randrange(len(names))
    metadata = {"i3d": dump(about)}
    match random.randrange(9):
        case 0 | 1 | 2:
            metadata = {"i3d": dump(hostile_json(random, about))}
        case 3:
            table = table.drop_columns([names[i]])
        case 4:
            name = random.choice(["x", "", "video"])
            table = table.rename_columns([*names[:i], name, *names[i + 1 :]])
        case 5:
            kinds = [pa.int8(), pa.string(), pa.float64(), pa.list_(pa.float64()), pa.binary()]
            kind = random.choice(kinds)
            values = pa.nulls(len(table), kind)
            table = table.set_column(i, names[i], values)
        case 6:
            table = pa.concat_tables([table, table.slice(0, random.randrange(3))])
        case 7:
            rows = table.to_pylist()
            row = random.choice(rows)
            key = random.choice(names)
            old = row[key]
            if isinstance(old, list):
                value = random.choice([float("nan"), float("inf"), None, 3e38, -1e38])
                old = [value, *old[1:]] if random.random() < 0.7 else old[1:]
            elif isinstance(old, int):
                old = random.choice([-1, 3, 1 << 40, None, -(1 << 63)])
            elif isinstance(old, str):
                old = random.choice([n for n in NAMES if n != "\ud800"])
            row[key] = old
            try:
                table = pa.Table.from_pylist(rows, schema=table.schema)
            except pa.ArrowException:
                table = table.slice(1)
        case _:
            table = table.slice(random.randrange(len(table) + 1))
    return reopened(random, table.replace_schema_metadata(metadata))


# --- features -------------------------------------------------------------------------------------

KEYS = ("a/one", "b %41", "c")


@cache
def settings(container: str) -> FeatureSettings:
    return FeatureSettings(
        dataset="clips", container=container, preset="kinetics-i3d", fps=25, endpoint="clip",
        classes=(), window_frames=16, step_frames=8.0, rest="drop", short="loop", precision="fp32",
        checkpoints={s: UsedCheckpoint(f"{s}.pt", "", s[0] * 64) for s in ("rgb", "flow")},
        versions={"torch": "2"},
    )  # fmt: skip


def fill(folder: Path, container: str) -> FeatureFolder:
    out = FeatureFolder(folder, settings(container), KEYS)
    out.begin()
    for i, key in enumerate(KEYS[:2]):
        rows = {}
        for stream in ("rgb", "flow"):
            rows[stream] = Rows()
            rows[stream].add(np.random.default_rng(i).normal(size=(3, 4)).astype(np.float32))
        spans = np.array([[0, 0.64], [0.32, 0.96], [0.64, 1.28]])
        about = VideoAbout(key, f"{key}.mp4", 40, 1.6, False, None if i else "2 frames lost")
        out.write(i, about, spans, rows)
    out.fail(2, "no video stream")
    return out


def feature_samples() -> list[Files]:
    return [made_in(lambda folder, c=c: fill(folder, c)) for c in ("npz", "npy")]


def read_features(folder: Path) -> list[Any]:
    """As a job does that goes on, and at its end."""
    container = "npz" if list(folder.rglob("*.npz")) else "npy"
    found = FeatureFolder(folder, settings(container), KEYS)
    found.begin()
    done = sorted(found.done())
    outcomes = found.find_outcomes()
    result = [done, found.measure(done), outcomes, sorted(found.outcomes())]
    if outcomes is not None:
        found.finish(outcomes)
        for kind in ("parquet", "hdf5") if container == "npz" and done else ():
            merge(found, outcomes, folder / f"merged.{kind}", kind)
    return result


def falsify_features(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Settings under a right seal; what stands beside the rows; the arrays."""
    name = random.choice(sorted(files))
    data = files[name]
    if name == "features.json":
        return files | {name: seal(hostile_json(random, unseal(data)))}
    if name.endswith(".json"):
        return files | {name: dump(hostile_json(random, json.loads(data)))}
    if name.endswith(".npy"):
        return files | {name: hostile_npy(random, data)}
    with np.load(io.BytesIO(data)) as stored:
        arrays = {key: stored[key] for key in stored.files}
    if random.random() < 0.5:
        text = dump(hostile_json(random, json.loads(str(arrays["about"])))).decode()
        arrays["about"] = np.array(text)
        return files | {name: sealed(npz(arrays))}
    if random.random() < 0.5:
        return files | {name: sealed(hostile_zip(random, data))}
    exchanged = {k: a for k, a in replaced(random, arrays).items() if k and "\ud800" not in k}
    return files | {name: sealed(npz(exchanged))}


def merged_samples() -> list[Files]:
    def write(folder: Path) -> None:
        out = fill(folder / "parts", "npz")
        outcomes = out.find_outcomes()
        assert outcomes is not None
        for suffix, kind in (("parquet", "parquet"), ("h5", "hdf5")):
            merge(out, outcomes, folder / f"x.{suffix}", kind)

    files = made_in(write)
    return [{name: files[name]} for name in ("x.parquet", "x.h5")]


def read_merged_file(folder: Path) -> Any:
    (path,) = folder.iterdir()
    return read_merged(str(path), settings("npz"))


def falsify_merged(random: Random, files: Files, others: Sequence[Files]) -> Files:
    (name,) = files
    if name.endswith("parquet"):
        schema = pq.read_schema(io.BytesIO(files[name]))
        about = json.loads(schema.metadata[b"i3d"])
        return {name: hostile_columns(random, files[name], about)}
    buffer = io.BytesIO(files[name])
    with h5py.File(buffer, "r+") as stored:
        about = json.loads(stored["about"][()])
        del stored["about"]
        match random.randrange(4):
            case 0:
                odd = [1, 1.5, np.zeros(3), [b"a", b"b"], b"\xff\xfe", ""]
                stored["about"] = random.choice(odd)
            case 1:
                stored.create_group("about")
            case _:
                stored["about"] = np.bytes_(dump(hostile_json(random, about)))
    return {name: buffer.getvalue()}


# --- predictions ----------------------------------------------------------------------------------


def predictions(videos: int = 4) -> Predictions:
    used = {s: UsedCheckpoint(f"{s}.npz", "", s[0] * 64) for s in ("rgb", "flow")}
    about = About(
        dataset="val", classes=("abseiling", 'say "cheese"', "日本"), preset="kinetics-i3d",
        frames=250, clips=1, crops=1, precision="fp32", checkpoints=used, versions={"torch": "2"},
        found=videos + 1, skipped=(Failure("bad", "damaged"),),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    logits = {s: rng.normal(0, 9, (videos, 3)).astype(np.float32) for s in ("rgb", "flow")}
    names = tuple(f"v/{i}, x" for i in range(videos))
    return Predictions(about, names, np.arange(videos) % 3, logits)


def prediction_samples() -> list[Files]:
    return [
        made_in(lambda folder: write_predictions(folder / "p.parquet", predictions())),
        made_in(lambda folder: write_predictions(folder / "p.csv", predictions())),
    ]


def read_evaluation(folder: Path) -> list[Any]:
    path = folder / ("p.csv" if (folder / "p.csv").exists() else "p.parquet")
    table = read_predictions(path)
    evaluation = Evaluation(table)
    texts = [str(evaluation), json_text(evaluation)]
    return [table, texts, evaluation.surest_mistakes(3), evaluation.most_confused(3)]


def check_evaluation(result: list[Any]) -> None:
    check_finite(result)
    table = result[0]
    for logits in table.logits.values():
        if logits.shape != (len(table.videos), len(table.about.classes)):
            raise Wrong("logits of another shape")


def falsify_predictions(random: Random, files: Files, others: Sequence[Files]) -> Files:
    if "p.parquet" in files:
        about = {"format": "i3d predictions 1", **plain(predictions().about)}
        return {"p.parquet": hostile_columns(random, files["p.parquet"], about)}
    if random.random() < 0.5:
        return files | {"p.csv": hostile_table(random, files["p.csv"])}
    document = hostile_json(random, json.loads(files["p.csv.json"]))
    return files | {"p.csv.json": dump(document)}


PLAN = Plan.of(["v"] * 5, [0] * 5)


def part_samples() -> list[Files]:
    table = predictions()
    part = Part((0, 2, 3, 1), table.logits, ((4, "damaged"),))
    return [{"part.npz": part.to_bytes(table.about, PLAN)}]


def read_part(folder: Path) -> Part:
    path = folder / "part.npz"
    return Part.from_bytes(path.read_bytes(), predictions().about, PLAN, str(path))


def falsify_part(random: Random, files: Files, others: Sequence[Files]) -> Files:
    with np.load(io.BytesIO(files["part.npz"])) as stored:
        arrays = {key: stored[key] for key in stored.files}
    match random.randrange(4):
        case 0:
            document = json.loads(arrays["about"].tobytes())
            arrays["about"] = np.frombuffer(dump(hostile_json(random, document)), np.uint8)
        case 1:
            arrays["reasons"] = np.frombuffer(dump(hostile_value(random)), np.uint8)
        case 2:
            return {"part.npz": sealed(hostile_zip(random, files["part.npz"]))}
        case _:
            arrays = {k: a for k, a in replaced(random, arrays).items() if k and "\ud800" not in k}
    return {"part.npz": sealed(npz(arrays))}


# --- FVD ------------------------------------------------------------------------------------------


def fvd_samples() -> list[Files]:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(12, 5)) for _ in range(2)]
    many = rng.normal(size=(300, 5))
    record = make_record(
        change_protocol("google-2018", {}), WeightsRecord("x", "", "0" * 64), "fp32",
        Tally(12, "files", 12),
    )  # fmt: skip

    def statistics(folder: Path, name: str, features: np.ndarray) -> None:
        moments = Moments(5)
        moments.update(features)
        tally = replace(record, found=len(features))
        write_statistics(folder / name, tally, moments)

    def saved(folder: Path, *, first: np.ndarray) -> None:
        statistics(folder, "real.npz", first)
        statistics(folder, "fake.npz", rows[1])

    arrays = io.BytesIO()
    np.save(arrays, rows[0].astype(np.float32))
    videos = rng.integers(0, 256, (2, 9, 4, 5, 3), np.uint8)
    return [
        made_in(lambda folder: saved(folder, first=rows[0])),
        made_in(lambda folder: saved(folder, first=many)),
        {"real.npy": arrays.getvalue(), "fake.npz": npz({"features": rows[1]})},
        {"videos.npz": npz({"videos": videos, "other": rows[0]})},
    ]


def read_sets(folder: Path) -> Any:
    """The distance of two sets; of videos the clips, which a network would see."""
    if (folder / "videos.npz").exists():
        protocol = change_protocol("google-2018", {"frames": 9, "size": 64})
        with open_footage(folder / "videos.npz") as opened:
            if opened.footage is None:
                return [opened.where]
            clips = ClipSet(opened.footage, protocol)
            return [clips.keys, *clips.read(Piece(0))]
    real = next(path for path in sorted(folder.iterdir()) if path.stem == "real")
    result = fvd(real, folder / "fake.npz")
    assert result is not None
    return [result.value, result.interval, str(result), result.line, json_text(result)]


def falsify_sets(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Arrays and records, under right seals where there are any."""
    name = random.choice(sorted(files))
    if name.endswith(".npy"):
        return files | {name: hostile_npy(random, files[name])}
    if random.random() < 0.3:
        return files | falsify_members(random, {name: files[name]}, others)
    with np.load(io.BytesIO(files[name])) as stored:
        arrays = {key: stored[key] for key in stored.files}
    document = None
    if "metadata" in arrays:
        document = unseal(arrays.pop("metadata").tobytes())
    if document is None or random.random() < 0.5:
        arrays = {k: a for k, a in replaced(random, arrays).items() if k and "\ud800" not in k}
    if document is not None:
        from i3d.tasks.fvd.statistics import _digest

        document["arrays_sha256"] = _digest(arrays)
        if random.random() < 0.5:
            document = hostile_json(random, document)
        arrays["metadata"] = np.frombuffer(seal(document), np.uint8)
    return files | {name: npz(arrays)}


def array_samples() -> list[Files]:
    return [{"x.npz": npz({"a": np.arange(6.0), "b": np.zeros((2, 2), "f4")})}]


def read_arrays(folder: Path) -> dict[str, Any]:
    with open_arrays(folder / "x.npz") as arrays:
        return {name: np.array(array) for name, array in arrays.arrays.items()}


# --- a training run's state -----------------------------------------------------------------------

_RUNS: dict[str, Any] = {}


def _plan(output: Path) -> Any:
    """A plan of two steps, for the folder that holds the state."""
    import tempfile

    from support import training

    from i3d.parallel.world import World
    from i3d.tasks.train.options import RunOptions
    from i3d.tasks.train.plan import make_plan

    if "shards" not in _RUNS:
        folder = tempfile.TemporaryDirectory(prefix="i3d-fuzz-")
        _RUNS["folder"] = folder  # kept until the process ends
        _RUNS["shards"] = training.write_shards(Path(folder.name) / "shards", [20] * 6, streams=1)
    options = replace(training.QUICK, frames=9, batch_size=3, epochs=1)
    run = RunOptions("rgb", os.fspath(output), "scratch", None, None, True)
    return make_plan(_RUNS["shards"], run, options, World())


def state_samples() -> list[Files]:
    from i3d.tasks.train import train

    def write(folder: Path) -> None:
        plan = _plan(folder / "run")
        train(_RUNS["shards"], stream="rgb", output=folder / "run", options=plan.options)

    return [{"state.pt": made_in(write)["run/state.pt"]}]


def read_run(folder: Path) -> list[Any]:
    """What is done before the first step of a run that goes on."""
    from i3d.tasks.train.loop import Loop
    from i3d.tasks.train.run import _go_on
    from i3d.tasks.train.state import read_state

    plan = _plan(folder)
    state = read_state(folder)
    loop = Loop(plan, _go_on(plan, state, lambda _: None), state, None, lambda _: None)
    return [loop.step, loop.history.best, len(loop.history.log), loop.learner.new_head]


def check_run(found: list[Any]) -> None:
    if not 0 <= found[0] <= 2:
        raise Wrong(f"step {found[0]} of 2")


def falsify_run(random: Random, files: Files, others: Sequence[Files]) -> Files:
    state = torch.load(io.BytesIO(files["state.pt"]), weights_only=True)
    if random.random() < 0.3:
        import zipfile

        with zipfile.ZipFile(io.BytesIO(files["state.pt"])) as archive:
            members = {m.filename: archive.read(m) for m in archive.infolist()}
        name = next(n for n in members if n.endswith("data.pkl"))
        members[name] = hostile_pickle(random, members[name])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return {"state.pt": buffer.getvalue()}
    target, key = state, random.choice(sorted(state))
    while isinstance(target[key], dict) and target[key] and random.random() < 0.7:
        target, key = target[key], random.choice(list(target[key]))
    old = target[key]
    match random.randrange(4):
        case 0:
            del target[key]
        case 1 if isinstance(old, torch.Tensor) and old.ndim:
            made = np.asarray(hostile_array(random, old.numpy()))
            if made.dtype.kind not in "SU" and made.dtype.isnative:
                target[key] = torch.from_numpy(np.array(made))
        case 2:
            target[random.choice(NAMES)] = old
        case _:
            target[key] = hostile_value(random)
    return {"state.pt": torch_bytes(state, zipped=random.random() < 0.9)}


# --- text -----------------------------------------------------------------------------------------

CSV = """label,youtube_id,time_start,time_end,split,is_cc
abseiling,aaaaaaaaaaa,0,10,val,0
"massaging person's head",bbbbbbbbbbb,12,22,val,0
zumba,ccccccccccc,3,13,train,0
"""
SHORT_CSV = "\n".join(",".join(line.split(",")[:4]) for line in CSV.splitlines())
LIST = """path label
abseiling/a.mp4 abseiling
b c.mp4 zumba
"d.mkv" "massaging person's head"
"""


def annotation_samples() -> list[Files]:
    clips = ["aaaaaaaaaaa_000000_000010", "bbbbbbbbbbb_000012_000022", "ccccccccccc_000003_000013"]
    videos = {f"val/{name}.mp4": b"" for name in clips}
    return [
        {"val.csv": CSV.encode(), **videos},
        {"val/train.csv": SHORT_CSV.encode(), **videos},
        {"val/list.csv": LIST.encode(), "val/abseiling/a.mp4": b"", "val/b c.mp4": b""},
        {"val/abseiling/a.mp4": b"", "val/zumba/b.mp4": b"", "val/zumba/b.mkv": b""},
        {"val/a.mp4": b"", "val/b.webm": b""},
    ]


def read_videos(folder: Path) -> list[Any]:
    dataset = read_dataset(folder / "val", labels="optional")
    planned = [
        PlannedSample(v.key, "x", v.index, v.start_seconds, v.end_seconds) for v in dataset.videos
    ]
    return [planned, dataset.classes, dataset.missing]


def check_videos(found: list[Any]) -> None:
    planned, classes, _ = found
    keys = [sample.key for sample in planned]
    if len(set(keys)) != len(keys):
        raise Wrong("a key twice")
    for sample in planned:
        if sample.class_index is not None and not 0 <= sample.class_index < len(classes):
            raise Wrong("a class outside of the list")
        sample.key.encode()


def falsify_rows(random: Random, files: Files, others: Sequence[Files]) -> Files:
    tables = [name for name in files if name.endswith(".csv")]
    if not tables:
        return rename_videos(random, files, others)
    separator = " " if "list" in tables[0] else ","
    return files | {tables[0]: hostile_table(random, files[tables[0]], separator=separator)}


def rename_videos(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Names on the disk that no one would choose."""
    name = random.choice(sorted(files))
    renamed = os.fsdecode(hostile_bytes(random)).replace("\0", "").strip("/")
    renamed = "/".join(part[:200] for part in renamed.split("/") if part not in ("", ".", ".."))
    places = [f"val/{renamed}.mp4", f"val/{renamed}/a.mp4", f"val/zumba/{renamed}.mp4"]
    place = random.choice(places)
    os.fsencode(place)
    kept = files if random.random() < 0.5 else {k: v for k, v in files.items() if k != name}
    return kept | {place: b""}


def class_samples() -> list[Files]:
    lists = ["one\ntwo\nthree\n", "id,name\n0,one\n1,two\n2,three\n", 'a 0\n"b 1" 1\n# x\nc 2\n']
    return [{"classes.txt": text.encode()} for text in lists]


def falsify_classes(random: Random, files: Files, others: Sequence[Files]) -> Files:
    separator = random.choice([",", " "])
    return {"classes.txt": hostile_table(random, files["classes.txt"], separator=separator)}


def check_classes(found: Any) -> None:
    if not found.names or len(set(found.names)) != len(found.names):
        raise Wrong("names that are none, or there twice")


def damage_text(random: Random, files: Files, others: Sequence[Files]) -> Files:
    name = random.choice([name for name in files if files[name]] or sorted(files))
    return files | {name: damage(random, files[name])}


TARGETS = [
    Target("features", feature_samples, read_features, check_finite, (falsify_features,)),
    Target("merged-features", merged_samples, read_merged_file, check_finite, (falsify_merged,)),
    Target(
        "predictions", prediction_samples, read_evaluation, check_evaluation, (falsify_predictions,)
    ),
    Target("parts", part_samples, read_part, lambda part: None, (falsify_part,)),
    Target("fvd", fvd_samples, read_sets, check_finite, (falsify_sets,)),
    Target("arrays", array_samples, read_arrays, lambda found: None, (falsify_members,)),
    Target("train-state", state_samples, read_run, check_run, (falsify_run,)),
    Target(
        "annotations", annotation_samples, read_videos, check_videos,
        (falsify_rows, falsify_rows, rename_videos, damage_text),
    ),
    Target(
        "classes", class_samples, lambda folder: class_list(folder / "classes.txt"), check_classes,
        (falsify_classes,),
    ),
]  # fmt: skip
