"""Shards: what is written reads back, by us, tarfile, WebDataset and FFmpeg; damage is found."""

import csv
import dataclasses
import hashlib
import io
import json
import multiprocessing
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import simplejpeg
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from i3d import files
from i3d import records as sealed
from i3d.classes import ClassList
from i3d.clips import flow_clip, quantize_flow
from i3d.data.shards import (
    Failure,
    Manifest,
    PictureWriter,
    PlannedSample,
    ShardIndex,
    complete_shards,
    finish_folder,
    open_dataset,
    plan_shards,
    read_manifest,
    write_manifest,
    write_shard,
)
from i3d.data.shards import format as shards
from i3d.data.shards.pictures import decode_flow, decode_rgb, encode_flow, encode_rgb
from i3d.errors import DatasetError, UsageError

CLASSES = ClassList("sports", ("abseiling", "archery", "arm wrestling"))
KEYS = [
    "abseiling/a b_000001_000011",
    "archery/日本 (1)",
    "archery/%E6%97%A5%2Emp4",
    "arm wrestling/" + "x" * 200,  # a pax header
    "arm wrestling/'quoted' ~",
    "unlabelled",
]
HEIGHT, WIDTH = 12, 16


def plan(keys=KEYS, *, clips_per_shard=2, **changes):
    samples = [
        PlannedSample(key, f"{key}.mp4", None if key == "unlabelled" else i % 3)
        for i, key in enumerate(keys)
    ]
    settings = {
        "dataset": "val",
        "classes": CLASSES,
        "preset": "kinetics-i3d",
        "streams": ("rgb", "flow"),
        "parameters": {
            "rgb_coding": "jpeg",
            "quality": 95,
            "bound": 20.0,
            "trim": False,
            "x": None,
        },
        "versions": {"simplejpeg": "1.9.0"},
        "shards": plan_shards(samples, clips_per_shard=clips_per_shard),
    }
    return Manifest(**{**settings, **changes})


def video(key, *, frames=4):
    """Frames and stored flow that depend on the key alone."""
    random = np.random.default_rng(list(key.encode()))
    rgb = random.integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8)
    flow = random.integers(1, 256, (frames - 1, HEIGHT, WIDTH, 2), np.uint8)
    return rgb, flow


def spool(pictures):
    writer = PictureWriter(io.BytesIO())
    for picture in pictures:
        writer.add(picture)
    return writer.pictures, writer.file


def add(writer, key):
    rgb, flow = (spool(pictures) for pictures in encoded(key))
    return writer.add(key, rgb=rgb, flow=flow, height=HEIGHT, width=WIDTH)


def encoded(key):
    rgb, flow = video(key)
    return [encode_rgb(x) for x in rgb], [encode_flow(x) for x in flow]


def write_folder(folder, manifest=None, *, failed=()):
    manifest = manifest or plan()
    write_manifest(folder, manifest)
    for shard, samples in enumerate(manifest.shards):
        with write_shard(folder, manifest, shard) as writer:
            for sample in samples:
                if sample.key in failed:
                    writer.fail(sample.key, "no\nvideo stream")
                else:
                    add(writer, sample.key)
    assert finish_folder(folder, manifest)
    return manifest


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return tmp_path / "out" if request.param == "local" else f"memory://{tmp_path.name}/out"


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "out"
    write_folder(folder)
    return folder


def read_all(folder):
    """What the files of a local folder hold."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_sample(sample):
    rgb, flow = video(sample.key)
    assert np.array_equal(sample.stored_flow(), flow)
    jpegs = [encode_rgb(frame) for frame in rgb]
    assert list(sample.rgb) == jpegs
    assert np.array_equal(
        sample.frames(), [simplejpeg.decode_jpeg(jpeg, fastupsample=False) for jpeg in jpegs]
    )


# Reading back


def test_streaming_and_range_reads_agree(folder):
    manifest = write_folder(folder)
    dataset = open_dataset(folder)
    assert dataset.found == len(KEYS) and dataset.failures() == []
    streamed = list(dataset.stream())
    assert [s.key for s in streamed] == [s.key for s in manifest.samples()]
    for sample, planned in zip(streamed, manifest.samples(), strict=True):
        check_sample(sample)
        assert dataset.read_sample(sample.key) == sample
        assert sample.class_index == planned.class_index
        info = sample.info
        assert (info.height, info.width, info.fps, info.preset) == (12, 16, 25, "kinetics-i3d")
        name = None if sample.key == "unlabelled" else CLASSES.names[sample.class_index]
        assert info.class_name == name


@pytest.mark.parametrize(("start", "stop"), [(0, None), (1, 3), (3, None), (0, 1), (2, 99), (9, 9)])
@pytest.mark.parametrize("streams", [("rgb",), ("flow",), ("rgb", "flow"), None])
def test_reading_a_part(written, start, stop, streams):
    dataset = open_dataset(written)
    whole = dataset.read_sample(KEYS[1])
    part = dataset.read_sample(KEYS[1], streams=streams, start=start, stop=stop)
    asked = streams or ("rgb", "flow")
    assert part.start == min(start, 4)
    assert part.rgb == (whole.rgb[start:stop] if "rgb" in asked else None)
    assert part.flow == (whole.flow[start:stop] if "flow" in asked else None)
    if "rgb" in asked:
        assert np.array_equal(part.frames(), whole.frames(start, stop))
    if "flow" in asked:
        assert np.array_equal(part.stored_flow(), whole.stored_flow()[start:stop])


def test_a_part_reads_only_its_bytes(written, monkeypatch):
    dataset = open_dataset(written)
    dataset.index(0)
    key = dataset.manifest.shards[0][0].key
    reads = []
    original = files.read_range
    monkeypatch.setattr(files, "read_range", lambda *a: reads.append(a[2]) or original(*a))
    info = dataset.read_sample(key, streams=("rgb",), start=1, stop=3).info
    assert reads == [len(info.to_json()), sum(info.rgb.sizes[1:3])]
    reads.clear()
    dataset.read_sample(key)
    assert len(reads) == 1


def test_only_wanted_pictures_are_decoded(written, monkeypatch):
    sample = open_dataset(written).read_sample(KEYS[0])
    decoded = []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda jpeg, **kw: decoded.append(jpeg) or original(jpeg, **kw)
    )
    assert sample.frames(1, 3).shape == (2, HEIGHT, WIDTH, 3)
    assert decoded == list(sample.rgb[1:3])


def test_streams_that_were_not_read(written):
    sample = open_dataset(written).read_sample(KEYS[0], streams=("flow",))
    with pytest.raises(UsageError, match="rgb was not read"):
        sample.frames()
    with pytest.raises(UsageError, match="'depth' is not one of rgb, flow"):
        open_dataset(written).read_sample(KEYS[0], streams=("depth",))


def test_without_flow(tmp_path):
    manifest = plan(streams=("rgb",))
    write_manifest(tmp_path, manifest)
    for shard, samples in enumerate(manifest.shards):
        with write_shard(tmp_path, manifest, shard) as writer:
            for sample in samples:
                rgb = spool(encoded(sample.key)[0])
                writer.add(sample.key, rgb=rgb, height=HEIGHT, width=WIDTH)
    dataset = open_dataset(tmp_path)
    for sample in dataset.stream():
        assert sample.flow is None and sample.info.flow is None and len(sample.rgb) == 4
    with pytest.raises(UsageError, match="without flow"):
        list(dataset.stream_shard(0, streams=("flow",)))


def test_one_frame_has_no_flow(tmp_path):
    manifest = plan(["a"])
    write_manifest(tmp_path, manifest)
    with write_shard(tmp_path, manifest, 0) as writer:
        rgb = spool(encoded("a")[0][:1])
        writer.add(
            "a", rgb=rgb, flow=spool([]), height=HEIGHT, width=WIDTH, damage="lost\n3 frames"
        )
    (sample,) = open_dataset(tmp_path).stream()
    assert sample.stored_flow().shape == (0, HEIGHT, WIDTH, 2)
    assert sample.frames().shape == (1, HEIGHT, WIDTH, 3)
    assert sample.info.damage == "lost 3 frames"


def test_stopping_early(written):
    stream = open_dataset(written).stream()
    next(stream)
    stream.close()


def read_in_child(dataset, queue):
    queue.put([sample.key for sample in dataset.stream()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_in_a_worker_process(written, method):
    dataset = open_dataset(written)
    keys = [sample.key for sample in dataset.stream()]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=read_in_child, args=(dataset, queue))
    process.start()
    assert queue.get(timeout=60) == keys
    process.join()
    assert pickle.loads(pickle.dumps(dataset)).found == dataset.found  # noqa: S301


# Other programs


def test_tarfile_reads_the_same_bytes(written):
    dataset = open_dataset(written)
    for shard in dataset.shards:
        index = dataset.index(shard)
        data = (written / shards.tar_name(shard)).read_bytes()
        assert hashlib.sha256(data).hexdigest() == index.tar_sha256
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for record in index.samples:
                for member in record.members:
                    info = tar.getmember(f"{record.key}.{member.suffix}")
                    assert (info.offset_data, info.size) == (member.offset, member.size)
                    assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
                    assert (info.uname, info.gname) == ("", "")
                    content = data[member.offset :][: member.size]
                    assert tar.extractfile(info).read() == content
            assert len(tar.getmembers()) == sum(len(r.members) for r in index.samples)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files open
def test_webdataset_reads_them(written):
    dataset = open_dataset(written)
    urls = [str(written / shards.tar_name(shard)) for shard in dataset.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in read] == [s.key for s in dataset.stream()]
    for theirs, ours in zip(read, dataset.stream(), strict=True):
        assert theirs["rgb.mjpeg"] == b"".join(ours.rgb)
        assert theirs["flow.mpng"] == b"".join(ours.flow)
        assert theirs["json"]["rgb"]["sizes"] == [len(x) for x in ours.rgb]
        assert theirs["json"]["class_name"] == ours.info.class_name
        assert theirs.get("cls") == ours.class_index


@pytest.mark.parametrize(("suffix", "demuxer"), [("rgb.mjpeg", "mjpeg"), ("flow.mpng", "png_pipe")])
def test_ffmpeg_plays_the_members(written, suffix, demuxer):
    sample = open_dataset(written).read_sample(KEYS[0])
    pictures = sample.rgb if suffix == "rgb.mjpeg" else sample.flow
    with av.open(io.BytesIO(b"".join(pictures)), format=demuxer) as container:
        frames = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert len(frames) == len(pictures)
    if demuxer == "png_pipe":
        flow = sample.stored_flow()
        assert np.array_equal(frames[0], np.concatenate([flow[0, ..., 0], flow[0, ..., 1]]))


def test_coreutils_check_the_seal(written):
    done = subprocess.run(
        "head -n -2 manifest.json | sha256sum; tail -n 2 manifest.json",
        shell=True, cwd=written, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second, _ = done.stdout.splitlines()
    assert first.split()[0] == json.loads(f"{{{second}}}")["sha256"] == plan().seal


# Pictures


def test_flow_is_stored_without_loss():
    flow = np.random.default_rng(0).normal(0, 8, (3, 224, 226, 2)).astype(np.float32)
    stored = quantize_flow(flow)
    back = decode_flow([encode_flow(x) for x in stored], height=224, width=226)
    assert np.array_equal(back, stored)
    assert np.array_equal(flow_clip(back), flow_clip(flow))


def test_rgb_is_stored_nearly():
    y, x = np.mgrid[:256, :340]
    frame = np.stack([x * 0.7, y, (x + y) * 0.4], -1).astype(np.uint8)
    jpeg = encode_rgb(frame)
    assert simplejpeg.decode_jpeg_header(jpeg) == (256, 340, "YCbCr", "420")
    assert jpeg == encode_rgb(frame[:, ::-1][:, ::-1])  # whatever the memory layout
    (back,) = decode_rgb([jpeg], height=256, width=340)
    assert np.abs(back.astype(int) - frame).mean() < 1  # measured 0.61
    opencv = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(back, opencv)


def huge_jpeg():
    """A JPEG whose header says 65500 x 65500."""
    jpeg = bytearray(encode_rgb(video("a")[0][0]))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = (65500).to_bytes(2, "big") * 2
    return bytes(jpeg)


def huge_png():
    png = bytearray(encode_flow(video("a")[1][0]))
    png[16:24] = (65500).to_bytes(4, "big") * 2
    return bytes(png)


@pytest.mark.parametrize(
    "jpeg", [b"", b"no JPEG", huge_jpeg(), encode_rgb(video("a")[0][0])[:-200]]
)
def test_bad_jpegs_are_refused(jpeg):
    with pytest.raises(DatasetError, match="frame 1"):
        decode_rgb([encode_rgb(video("a")[0][0]), jpeg], height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize("png", [b"", b"no PNG", huge_png(), encode_flow(video("a")[1][0])[:60]])
def test_bad_pngs_are_refused(png):
    with pytest.raises(DatasetError, match="flow 1"):
        decode_flow([encode_flow(video("a")[1][0]), png], height=HEIGHT, width=WIDTH)


# The plan


def test_the_plan_depends_on_keys_and_seed_alone():
    samples = [PlannedSample(f"{i % 3}/{i}", f"{i}.mp4") for i in range(10)]
    planned = plan_shards(samples, clips_per_shard=4)
    assert planned == plan_shards(samples[::-1], clips_per_shard=4)
    # Frozen: with another order nobody could resume.
    assert [" ".join(s.key for s in shard) for shard in planned] == [
        "0/3 2/8 0/0 0/6",
        "2/2 1/7 2/5 1/1",
        "1/4 0/9",
    ]
    assert plan_shards(samples, clips_per_shard=4, seed=1) != planned
    with pytest.raises(UsageError, match="at least 1"):
        plan_shards(samples, clips_per_shard=0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.b", "without dots"),
        ("", "names between"),
        ("/a", "names between"),
        ("a//b", "names between"),
        ("a\nb", "control"),
        ("a\ud800", "names between"),
        ("x" * 10_000, "names between"),
        ("__a__/b", "WebDataset skips"),
    ],
)
def test_keys_that_a_tar_would_not_give_back(key, message):
    with pytest.raises(DatasetError, match=message):
        PlannedSample(key, "a.mp4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"location": "/data/a.mp4"}, "relative"),
        ({"location": "s3://bucket/a.mp4"}, "relative"),
        ({"start_seconds": float("nan")}, "no time"),
        ({"end_seconds": -1.0}, "no time"),
    ],
)
def test_samples_that_make_no_sense(change, message):
    with pytest.raises(DatasetError, match=message):
        PlannedSample(**{"key": "a", "location": "a.mp4", **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": ()}, "at least one sample"),
        ({"shards": ((),)}, "at least one sample"),
        ({"shards": ((PlannedSample("a", "a"),), (PlannedSample("a", "b"),))}, "twice"),
        ({"shards": ((PlannedSample("a", "a", 3),),)}, "index 3, but there are 3"),
        ({"shards": ((PlannedSample("a", "a", -1),),)}, "index -1"),
        ({"classes": None}, "there are 0"),
        ({"streams": ("flow",)}, "must be"),
    ],
)
def test_plans_that_make_no_sense(change, message):
    with pytest.raises(DatasetError, match=message):
        plan(**change)


def test_resuming_with_other_settings_names_the_difference(folder):
    manifest = plan()
    write_manifest(folder, manifest)
    write_manifest(folder, plan())  # the same again
    others = {
        "dataset: 'val', now 'train'": plan(dataset="train"),
        "classes: 'sports', now 'sport'": plan(classes=ClassList("sport", CLASSES.names)),
        "class 1: 'archery', now 'bowling'": plan(
            classes=ClassList("sports", ("abseiling", "bowling", "arm wrestling"))
        ),
        "streams: rgb+flow, now rgb": plan(streams=("rgb",)),
        "parameter quality: 95, now 90": plan(parameters={**manifest.parameters, "quality": 90}),
        "parameter new: absent, now 1": plan(parameters={**manifest.parameters, "new": 1}),
        "version of simplejpeg: '1.9.0', now '2.0'": plan(versions={"simplejpeg": "2.0"}),
        "samples: 6, now 5; 'unlabelled' is no longer": plan(KEYS[:-1]),
        "samples: 6, now 7; 'new' was not there": plan([*KEYS, "new"]),
        "in shard 1, now in 0": plan(clips_per_shard=3),
        "another order": plan(shards=tuple(shard[::-1] for shard in manifest.shards)),
    }
    for message, other in others.items():
        with pytest.raises(UsageError, match="another output folder") as caught:
            write_manifest(folder, other)
        assert message in str(caught.value)
    assert read_manifest(folder) == manifest


def test_many_processes_write_the_same_manifest(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_manifest(tmp_path, plan()), range(16)))
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
    assert read_manifest(tmp_path) == plan()


texts = st.text(max_size=20)
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
seconds = st.none() | st.floats(0, 1e6) | st.integers(0, 1000)
parts = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="./_"), min_size=1, max_size=8
)
samples = st.builds(
    PlannedSample,
    st.lists(parts, min_size=1, max_size=2).map("/".join),
    texts.filter(lambda text: not text.startswith("/") and "://" not in text),
    st.none() | st.integers(0, 2),
    seconds,
    seconds,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    texts,
    st.dictionaries(texts, texts | numbers | st.booleans() | st.none(), max_size=5),
    st.lists(samples, min_size=1, max_size=10, unique_by=lambda s: s.key),
    st.integers(1, 4),
)
def test_any_manifest_reads_back(dataset, parameters, planned, clips):
    manifest = plan(
        dataset=dataset,
        parameters=parameters,
        shards=plan_shards(planned, clips_per_shard=clips),
    )
    data = manifest.to_json()
    data.decode("ascii")
    back = Manifest.from_json(data)
    assert back == manifest and back.seal == manifest.seal and back.to_json() == data


def seal(text):
    """Seal any text as a manifest or sidecar, as an attacker would."""
    head = text.encode()
    return head + sealed.SEAL.format(hashlib.sha256(head).hexdigest()).encode()


json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.just(float("nan")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_manifests_are_refused(data):
    document = json.loads(plan().to_json())
    del document["sha256"]
    target = document
    while True:  # somewhere in the document, another value
        places = list(target) if isinstance(target, dict) else list(range(len(target)))
        place = data.draw(st.sampled_from(places))
        inner = target[place]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        target = inner
    target[place] = data.draw(json_values)
    text = json.dumps(document, indent=1).removesuffix("\n}") + ",\n"
    with pytest.raises(DatasetError):
        Manifest.from_json(seal(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"format": ' + "9" * 5000 + ",\n",
        '{"format": 1e999,\n',
    ],
)
def test_text_that_is_no_manifest(text):
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Manifest.from_json(seal(text))
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Manifest.from_json(text.encode())


def test_a_file_that_is_too_large_is_not_read(written, monkeypatch):
    monkeypatch.setattr(shards, "_MAX_JSON_BYTES", 100)
    with pytest.raises(DatasetError, match="has more than"):
        open_dataset(written)


# Writing


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
    short, long = (shards._tar_header(f"{key}.json", 12345) for key in (KEYS[0], KEYS[3]))
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


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from test_shards import add, plan, write_manifest, write_shard
manifest = plan()
write_manifest(sys.argv[1], manifest)
with write_shard(sys.argv[1], manifest, 0) as writer:
    add(writer, manifest.shards[0][0].key)
    os.kill(os.getpid(), 9)
"""


def test_kill_9_and_again_gives_the_same_folder(tmp_path):
    folder = tmp_path / "killed"
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), here], check=False)
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


# Damage


def read_everything(folder):
    dataset = open_dataset(folder)
    dataset.failures()
    for sample in dataset.stream():
        check_sample(sample)


@pytest.mark.parametrize("name", ["shard-00000.tar", "shard-00000.json", "manifest.json"])
def test_a_flipped_bit_anywhere_is_found(written, name):
    path = written / name
    data = path.read_bytes()
    step = max(1, len(data) // 150)
    for i, position in enumerate([*range(0, len(data), step), len(data) - 1]):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (i % 8)
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"{name}.*"):
            read_everything(written)
    path.write_bytes(data)
    read_everything(written)


def test_damage_names_shard_key_member_and_remedy(written):
    dataset = open_dataset(written)
    record = dataset.index(0).samples[1]
    path = written / "shard-00000.tar"
    data = path.read_bytes()
    for member in record.members:
        damaged = bytearray(data)
        damaged[member.offset + member.size - 1] ^= 1
        path.write_bytes(damaged)
        streams = [(), ("rgb",), ("flow",)]
        for read in [
            lambda: list(dataset.stream_shard(0)),
            lambda: dataset.read_sample(record.key),
        ]:
            with pytest.raises(DatasetError) as caught:
                read()
            for part in ("shard-00000.tar", repr(record.key), f"member {member.suffix}", "delete"):
                assert part in str(caught.value)
        for chosen in streams[1:]:
            wanted = {"json", shards.SUFFIXES[chosen[0]]}
            if member.suffix in wanted:
                with pytest.raises(DatasetError, match=f"member {member.suffix} is damaged"):
                    dataset.read_sample(record.key, streams=chosen)
            else:
                dataset.read_sample(record.key, streams=chosen)
    damaged = bytearray(data)
    damaged[record.offset] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match="header or padding"):
        dataset.read_sample(record.key)


@pytest.mark.parametrize("cut", [1, 1024, 5000])
def test_a_truncated_tar(written, cut):
    path = written / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DatasetError, match=r"shard-00001.tar has .* sidecar says"):
        read_everything(written)
    assert complete_shards(written, plan()) == [0, 2]
    if cut == 5000:
        key = plan().shards[1][-1].key
        with pytest.raises(DatasetError, match=r"shard-00001.tar ends at"):
            open_dataset(written).read_sample(key)


def test_shards_that_were_mixed_up(written, tmp_path):
    other = tmp_path / "other"
    write_folder(other, plan(dataset="other"))
    sidecar = (written / "shard-00000.json").read_bytes()

    (written / "shard-00000.json").write_bytes((other / "shard-00000.json").read_bytes())
    with pytest.raises(DatasetError, match=r"shard-00000.json belongs to another manifest"):
        read_everything(written)
    assert complete_shards(written, plan()) == [1, 2]

    (written / "shard-00000.json").write_bytes((written / "shard-00001.json").read_bytes())
    with pytest.raises(DatasetError, match=r"shard-00000.json is the sidecar of shard 1"):
        read_everything(written)

    (written / "shard-00000.json").write_bytes(sidecar)
    (written / "shard-00000.tar").write_bytes((written / "shard-00001.tar").read_bytes())
    with pytest.raises(DatasetError, match=r"shard-00000.tar"):
        read_everything(written)


def hostile_indexes():
    """Changes to a sidecar that would make a careless reader read elsewhere."""

    def member(index, **change):
        record = index.samples[0]
        members = (record.members[0], dataclasses.replace(record.members[1], **change))
        record = dataclasses.replace(record, members=members + record.members[2:])
        return dataclasses.replace(index, samples=(record, *index.samples[1:]))

    def sample(index, **change):
        record = dataclasses.replace(index.samples[0], **change)
        return dataclasses.replace(index, samples=(record, *index.samples[1:]))

    yield lambda index: member(index, size=2**50)
    yield lambda index: member(index, size=-1)
    yield lambda index: member(index, offset=-512)
    yield lambda index: member(index, offset=0)
    yield lambda index: member(index, suffix="exe")
    yield lambda index: sample(index, offset=512)
    yield lambda index: sample(index, size=2**60)
    yield lambda index: sample(index, size=0)
    yield lambda index: sample(index, key="other")
    yield lambda index: sample(index, members=())
    yield lambda index: dataclasses.replace(index, samples=index.samples[::-1])
    yield lambda index: dataclasses.replace(index, samples=index.samples[1:])
    yield lambda index: dataclasses.replace(index, tar_bytes=1024)
    yield lambda index: dataclasses.replace(index, failures=(Failure("other", "x"),))
    yield lambda index: dataclasses.replace(
        index, failures=(Failure(index.samples[0].key, "x"),) * 2
    )


@pytest.mark.parametrize("change", list(hostile_indexes()))
def test_hostile_sidecars_are_refused(written, change):
    manifest = read_manifest(written)
    index = change(open_dataset(written).index(0))
    with pytest.raises(DatasetError, match="sidecar"):
        ShardIndex.from_json(index.to_json(), manifest, 0, "sidecar")


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"height": 2**40},
        {"height": 16000, "width": 16000},
        {"height": True},
        {"fps": "25"},
        {"key": "other"},
        {"class_index": 1},
        {"rgb": None},
        {"rgb": {"sizes": [], "crc32c": []}},
        {"rgb": {"sizes": [-1, 2, 3, 4], "crc32c": [0, 0, 0, 0]}},
        {"rgb": {"sizes": [1, 2, 3, 4], "crc32c": [0, 0, 0]}},
        {"rgb": {"sizes": [1, 2, 3, 4], "crc32c": [0, 0, 0, 0]}},
        {"flow": None},
        {"flow": {"sizes": [1, 2], "crc32c": [0, 0]}},
        {"format": "i3d sample 2"},
        {"more": 1},
    ],
)
def test_hostile_metadata_is_refused(written, change):
    dataset = open_dataset(written)
    planned = dataset.manifest.shards[0][0]
    info = dataset.read_sample(planned.key).info
    data = json.dumps({**json.loads(info.to_json()), **change}).encode()
    with pytest.raises(DatasetError, match="tar"):
        shards._info(dataset.index(0).samples[0], data, planned, "tar")
