"""What is written reads back, by us, tarfile, WebDataset and FFmpeg."""

import hashlib
import io
import json
import multiprocessing
import pickle
import subprocess
import tarfile

import av
import numpy as np
import pytest
import simplejpeg
import webdataset
from support.shards import (
    CLASSES,
    HEIGHT,
    KEYS,
    WIDTH,
    check_sample,
    encoded,
    plan,
    spool,
    write_folder,
)

from i3d import files
from i3d.data.shards import (
    open_dataset,
    write_manifest,
    write_shard,
)
from i3d.data.shards.format import tar_name
from i3d.errors import UsageError


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
        data = (written / tar_name(shard)).read_bytes()
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
    urls = [str(written / tar_name(shard)) for shard in dataset.shards]
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
