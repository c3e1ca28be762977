"""Chunks joined are the whole video, in bounded parts, wherever it comes from."""

import numpy as np
import pytest
from support.reading import FRAMES, PRESET

from i3d.clips import center_crop
from i3d.data.kinetics import read_dataset
from i3d.data.reading import chunks
from i3d.data.reading.chunks import ShardChunks, VideoChunks, load_chunks
from i3d.data.shards import open_dataset
from i3d.errors import StorageError
from i3d.presets import find_preset

BOTH = ("rgb", "flow")


@pytest.fixture
def from_videos(videos):
    return VideoChunks(read_dataset(videos, classes="folders").videos, PRESET, root=str(videos))


@pytest.fixture
def from_shards(shards):
    return ShardChunks(open_dataset(shards), PRESET)


def read(source, *, streams=BOTH, workers=0):
    """Key -> the chunks of every video, each in its order."""
    found = {}
    indices = list(range(len(source.keys)))
    for chunk in load_chunks(source, indices, streams=streams, workers=workers):
        found.setdefault(source.keys[chunk.video], []).append(chunk)
    return found


def join(parts, stream):
    """A video's pixels from its chunks; each is small."""
    arrays = [part.pixels[stream].numpy() for part in parts if stream in part.pixels]
    assert all(0 < len(array) <= chunks.CHUNK_FRAMES + 2 for array in arrays)
    return np.concatenate(arrays)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, parts in one.items():
        assert len(parts) == len(other[key])
        for here, there in zip(parts, other[key], strict=True):
            assert (here.frames, here.last, here.error) == (there.frames, there.last, there.error)
            assert here.pixels.keys() == there.pixels.keys()
            for stream, pixels in here.pixels.items():
                assert np.array_equal(pixels, there.pixels[stream])


def test_chunks_of_shards_are_the_stored_pictures(from_shards, shards):
    dataset = open_dataset(shards)
    found = read(from_shards)
    for key, frames in FRAMES.items():
        sample, parts = dataset.read_sample(key), found[key]
        assert sum(part.frames for part in parts) == frames
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert np.array_equal(join(parts, "rgb"), center_crop(sample.frames(), PRESET.crop))
        if frames > 1:
            flow = center_crop(sample.stored_flow(), PRESET.crop)
            assert np.array_equal(join(parts, "flow"), flow)
    assert len(found["a/long"]) == 4  # 32 and 8 frames, their number, the end


def test_chunks_of_videos_are_those_of_shards(from_videos, from_shards):
    """Flow is stored without loss, frames as JPEG: the same to the bit, and nearly."""
    here, there = read(from_videos), read(from_shards)
    for key, frames in FRAMES.items():
        assert sum(part.frames for part in here[key]) == frames
        if frames > 1:
            assert np.array_equal(join(here[key], "flow"), join(there[key], "flow"))
        difference = join(here[key], "rgb").astype(int) - join(there[key], "rgb")
        assert 0 < np.abs(difference).mean() < 4


@pytest.mark.parametrize("stream", BOTH)
@pytest.mark.parametrize("source", ["from_videos", "from_shards"])
def test_one_stream_alone_is_the_same(source, stream, request):
    source = request.getfixturevalue(source)
    both, alone = read(source), read(source, streams=(stream,))
    for key, frames in FRAMES.items():
        if frames > 1 or stream == "rgb":
            assert np.array_equal(join(alone[key], stream), join(both[key], stream))
        assert not any(part.pixels.keys() - {stream} for part in alone[key])


def test_a_long_sample_is_read_in_parts(from_shards, monkeypatch):
    whole = read(from_shards)
    lengths = []
    original = chunks.ShardChunks._decode
    monkeypatch.setattr(chunks, "READ_FRAMES", chunks.CHUNK_FRAMES)
    monkeypatch.setattr(
        chunks.ShardChunks,
        "_decode",
        lambda self, sample: lengths.append(len(sample.rgb)) or original(self, sample),
    )
    assert_same(read(from_shards), whole)
    assert sorted(lengths) == sorted([32, 8, 7, 1, 30])


@pytest.mark.parametrize("source", ["from_videos", "from_shards"])
def test_worker_processes_give_the_same(source, request):
    source = request.getfixturevalue(source)
    assert_same(read(source, workers=2), read(source))


@pytest.mark.parametrize("source", ["from_videos", "from_shards"])
def test_a_video_at_fault_is_named_without_its_folder(source, videos, shards, request):
    source = request.getfixturevalue(source)
    (chunk,) = read(source)["b/zerobytes"]
    assert "empty" in chunk.error and not chunk.pixels
    assert str(videos) not in chunk.error and str(shards) not in chunk.error


def test_frames_smaller_than_the_crop(shards):
    found = read(ShardChunks(open_dataset(shards), find_preset("kinetics-i3d")))
    assert all("smaller than the crop of 224" in found[key][0].error for key in FRAMES)


def test_what_is_no_videos_fault_ends_the_job(from_videos, monkeypatch):
    def fail(self, i, streams, *, threads):
        raise StorageError("the server is gone")
        yield

    monkeypatch.setattr(VideoChunks, "read", fail)
    with pytest.raises(StorageError, match="the server is gone"):
        read(from_videos)


def test_reasons_hold_no_absolute_path(from_shards, from_videos):
    for source, root in ((from_shards, from_shards.dataset.folder), (from_videos, None)):
        (broken,) = read(source)["b/zerobytes"]
        assert broken.error and not broken.error.startswith("/")
        assert root is None or str(root) not in broken.error
