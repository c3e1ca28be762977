"""What leaves the loader is what the network would see, however it was read."""

from functools import partial

import cv2
import numpy as np
import pytest
import torch
from support.reading import FRAMES, PRESET

import i3d
from i3d.clips import Views, flow_clip, loop_frames, rgb_clip
from i3d.data.kinetics import read_dataset
from i3d.data.reading.clips import ShardClips, VideoClips, clip_bytes
from i3d.data.shards import ShardDataset, open_dataset
from i3d.errors import I3DError, UsageError
from i3d.parallel import ahead
from i3d.presets import KINETICS_I3D, find_preset


def by_key(source, views, **options):
    options = {"streams": ("rgb", "flow"), "workers": 0} | options
    indices = options.pop("indices", range(len(source.keys)))
    read = partial(source.read, streams=options.pop("streams"), views=views)
    loaded = list(ahead.read_items(read, list(indices), **options))
    assert [video.index for video in loaded] == list(indices)
    return {source.keys[video.index]: video for video in loaded}


def clips_of(video, stream, views, crop):
    """Every view of a loaded video as a clip, cut as plainly as possible."""
    clips = []
    for start in video.about.starts[stream]:
        part = loop_frames(video.tensors[stream][start : start + views.frames], views.frames)
        for top, left in video.about.corners:
            view = part[:, top : top + crop, left : left + crop]
            clips.append((rgb_clip if stream == "rgb" else flow_clip)(view, crop=crop))
    return clips


def test_a_test_clip_from_shards(shards):
    """As cv2 decodes the stored pictures and slices them."""
    views = Views(frames=16)
    dataset = open_dataset(shards)
    loaded = by_key(ShardClips(dataset, PRESET), views)
    for key in ("a/long", "a/short", "b/tall"):
        sample = dataset.read_sample(key)
        top = (sample.info.height - PRESET.crop) // 2
        left = (sample.info.width - PRESET.crop) // 2
        box = slice(top, top + PRESET.crop), slice(left, left + PRESET.crop)
        decoded = [cv2.imdecode(np.frombuffer(j, np.uint8), 1)[..., ::-1] for j in sample.rgb]
        (clip,) = clips_of(loaded[key], "rgb", views, PRESET.crop)
        looped = [decoded[i % len(decoded)][box] for i in range(16)]
        expected = np.stack(looped).transpose(3, 0, 1, 2) / 127.5 - 1
        # The decoders' roundings of colour differ by one level of 255 here and there.
        assert np.abs(clip.numpy() - expected).max() <= 2.01 / 255
        both = [cv2.imdecode(np.frombuffer(p, np.uint8), 0) for p in sample.flow]
        height = sample.info.height
        flow = [np.stack([b[:height][box], b[height:][box]]) for b in both]
        (clip,) = clips_of(loaded[key], "flow", views, PRESET.crop)
        expected = np.stack([flow[i % len(flow)] for i in range(16)], 1)
        np.testing.assert_allclose(clip.numpy(), (expected - 128.0) / 127, atol=1e-7)


def test_flow_of_videos_is_that_of_shards(videos, shards):
    """Flow is stored without loss, frames as JPEG: the same to the bit, and nearly."""
    dataset = read_dataset(videos, classes="folders")
    views = Views(frames=16, clips=3, crops=3)
    from_videos = by_key(VideoClips(dataset.videos, PRESET, max_seconds=10), views)
    from_shards = by_key(ShardClips(open_dataset(shards), PRESET), views)
    assert set(from_videos) == set(from_shards) == {*FRAMES, "b/zerobytes"}
    for key in ("a/long", "a/short", "b/tall"):
        one, other = from_videos[key], from_shards[key]
        assert one.about == other.about
        assert torch.equal(one.tensors["flow"], other.tensors["flow"])
        difference = one.tensors["rgb"].float() - other.tensors["rgb"].float()
        assert 0 < difference.abs().mean() < 4
    for loaded in (from_videos, from_shards):
        assert "one frame has no flow" in loaded["b/single"].error
        assert "empty" in loaded["b/zerobytes"].error
        assert not loaded["b/single"].tensors


def test_a_video_of_one_frame_has_rgb(videos, shards):
    dataset = read_dataset(videos, classes="folders")
    for source in (
        VideoClips(dataset.videos, PRESET, max_seconds=10),
        ShardClips(open_dataset(shards), PRESET),
    ):
        video = by_key(source, Views(frames=16), streams=("rgb",))["b/single"]
        assert video.error is None and len(video.tensors["rgb"]) == 1


@pytest.mark.parametrize("length", [1, 9, 15, 16, 17, 18, 40, 250])
def test_clips_are_spread_over_the_video(length):
    for count in (1, 2, 10):
        starts = Views(frames=16, clips=count).starts(length)
        expected = np.linspace(0, max(0, length - 16), count if length > 16 else 1)
        assert starts == tuple(np.floor(expected + 1e-9).astype(int))


def test_crops_cover_the_longer_side():
    views = Views(crops=3)
    assert views.corners(256, 340, KINETICS_I3D) == ((16, 0), (16, 58), (16, 116))
    assert views.corners(455, 256, KINETICS_I3D) == ((0, 16), (115, 16), (231, 16))
    assert Views().corners(256, 341, KINETICS_I3D) == ((16, 58),)
    with pytest.raises(I3DError, match="100x256 are smaller"):
        views.corners(256, 100, KINETICS_I3D)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 8}, "at least 9"),
        ({"clips": 0}, "at least 1"),
        ({"crops": 2}, "1 .centre. or 3"),
    ],
)
def test_views_without_meaning(options, message):
    with pytest.raises(UsageError, match=message):
        Views(**options)


@pytest.mark.parametrize("views", [Views(frames=9), Views(frames=250), Views(12, 4, 3)])
def test_only_what_the_views_need_is_decoded(shards, views, monkeypatch):
    decoded = []
    original = ShardDataset.read_sample

    def read_sample(self, key, **options):
        sample = original(self, key, **options)
        decoded.append(len(sample.rgb))
        return sample

    monkeypatch.setattr(ShardDataset, "read_sample", read_sample)
    source = ShardClips(open_dataset(shards), PRESET)
    video = by_key(source, views, indices=[source.keys.index("a/long")])["a/long"]
    assert decoded == [9 if views.frames == 9 else 40]
    assert video.tensors["rgb"].shape[0] == min(40, views.starts(40)[-1] + views.frames)
    height, width = video.tensors["rgb"].shape[1:3]
    assert (height, width) == (PRESET.crop, 69 if views.crops == 3 else PRESET.crop)


def test_worker_processes_give_the_same_in_order(shards):
    views = Views(frames=16, clips=2)
    source = ShardClips(open_dataset(shards), PRESET)
    alone, workers = by_key(source, views), by_key(source, views, workers=2)
    assert list(alone) == list(workers)
    for key, video in alone.items():
        assert workers[key].error == video.error
        for stream, pixels in video.tensors.items():
            assert torch.equal(workers[key].tensors[stream], pixels)


def test_damage_is_one_videos_fault(shards, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in shards.iterdir():
        data = bytearray(path.read_bytes())
        if path.name == "shard-00000.tar":
            data[len(data) // 2] ^= 1
        (folder / path.name).write_bytes(data)
    loaded = by_key(ShardClips(open_dataset(folder), PRESET), Views(frames=250))
    damaged = [v.error for v in loaded.values() if v.error and "damaged" in v.error]
    assert len(damaged) == 1 and "CRC32C" in damaged[0]


class Broken:
    keys, labels = ("a", "b"), (0, 0)

    def __init__(self, error):
        self.error = error

    def read(self, i):
        if i == 1:
            raise self.error
        raise i3d.errors.VideoError("no such video")


@pytest.mark.parametrize("error", [OSError(28, "No space left"), I3DError("HDFS does not answer")])
def test_what_is_no_videos_fault_ends_the_job(error):
    videos = ahead.read_items(Broken(error).read, [0, 1], workers=0)
    assert next(videos).error == "no such video"
    with pytest.raises(type(error), match=str(error.args[-1])):
        next(videos)


def test_too_little_shared_memory_is_said_before(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 64 << 20})
    monkeypatch.setattr(ahead.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(ahead, "SHARED_MEMORY", tmp_path)
    size = clip_bytes(Views(), find_preset("kinetics-i3d"))
    ahead.check_shared_memory(size, workers=0)
    with pytest.raises(UsageError, match=r"8 workers need .* 64 MiB free.*--workers 0"):
        ahead.check_shared_memory(size, workers=8)
    ahead.check_shared_memory(4 << 20, workers=4, processes=2)
    with pytest.raises(UsageError, match=r"12 workers need 96 MiB.*--workers 2"):
        ahead.check_shared_memory(4 << 20, workers=4, processes=3)
