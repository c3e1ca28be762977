"""Which clips a step sees and how they are cut, against NumPy, OpenCV and each other."""

import cv2
import numpy as np
import pytest
import torch
from support.training import CLASSES, CROP, HEIGHT, QUICK, write_shards

from i3d.clips import dequantize_flow, flow_clip, quantize_flow, rgb_clip, scale_pixels
from i3d.data.reading.random_clips import (
    Cut,
    Order,
    keep_masks,
    load_batches,
    mirror,
    open_training_set,
    read_clip,
)
from i3d.data.shards import open_dataset
from i3d.errors import DatasetError, UsageError
from i3d.presets import CHAINER_I3D, KINETICS_I3D, preset_with_short_side
from i3d.tasks.train import train

PRESET = preset_with_short_side(HEIGHT)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Thirteen videos of 4 to 40 frames, in three shards."""
    return write_shards(tmp_path_factory.mktemp("train"), [4, 40, 12, *range(10, 20)])


def test_processes_and_micro_batches_take_parts_of_one_order():
    whole = Order(23, batch_size=8, seed=5)
    for batch, accumulate, size in ((4, 1, 2), (2, 1, 4), (4, 2, 1), (2, 2, 2), (1, 8, 1)):
        for step in range(5):
            epoch, expected = whole.batch(step)
            parts = []
            for micro in range(accumulate):
                for rank in range(size):
                    order = Order(23, batch, accumulate, rank, size, seed=5)
                    assert order.clips_per_step == 8 and order.steps_per_epoch == 2
                    found, part = order.batch(step * accumulate + micro)
                    assert found == epoch == order.epoch_of(step) == step // 2
                    parts.append(part)
            np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_an_epoch_has_every_video_once_and_epochs_differ():
    orders = [Order(24, batch_size=8, seed=seed) for seed in (0, 0, 1)]
    epochs = [
        [np.concatenate([o.batch(3 * e + s)[1] for s in range(3)]) for e in (0, 1)] for o in orders
    ]
    for epoch in (e for of_order in epochs for e in of_order):
        assert sorted(epoch) == list(range(24))
    np.testing.assert_array_equal(epochs[0], epochs[1])
    different = [epochs[0][0], epochs[0][1], epochs[2][0]]
    assert len({tuple(e) for e in different}) == 3


def test_a_set_smaller_than_a_step():
    with pytest.raises(UsageError, match=r"24 clips \(batch 4 x accumulate 2 x 3 .*23 videos"):
        Order(23, batch_size=4, accumulate=2, processes=3)


def clips_of(shards, stream="rgb", *, workers=0, frames=12, order=None, first=0, stop=4):
    data = open_training_set(shards, stream)
    order = order or Order(len(data), batch_size=4, seed=7)
    batches = load_batches(
        data, order, first=first, stop=stop, frames=frames, workers=workers, flip=True
    )
    return [batch.numpy() for batch in batches]


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_clips_do_not_depend_on_workers_processes_or_where_one_begins(shards, stream):
    expected = clips_of(shards, stream)
    assert all(
        batch.shape == (4, 12, CROP, CROP, 3 if stream == "rgb" else 2) for batch in expected
    )
    for batch, again in zip(expected, clips_of(shards, stream, workers=2), strict=True):
        np.testing.assert_array_equal(batch, again)
    for batch, again in zip(expected[2:], clips_of(shards, stream, first=2), strict=True):
        np.testing.assert_array_equal(batch, again)
    ranks = [
        clips_of(shards, stream, order=Order(13, batch_size=2, rank=rank, processes=2, seed=7))
        for rank in range(2)
    ]
    for batch, *parts in zip(expected, *ranks, strict=True):
        np.testing.assert_array_equal(batch, np.concatenate(parts))
    # and the next epoch cuts them otherwise: three steps are an epoch here
    assert not any(np.array_equal(expected[0][0], clip) for clip in expected[3])


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_clip_is_that_part_of_its_video(shards, stream):
    """cv2 decodes the stored pictures, NumPy cuts, loops and mirrors them."""
    dataset = open_dataset(shards)
    seen = set()
    for sample in dataset.stream():
        for epoch in range(6):
            key = (3, epoch, 0)
            ours = read_clip(dataset, sample.key, stream, key, frames=14, preset=PRESET)
            cut = Cut.draw(sample.info, stream, key, frames=14, crop=CROP, flip=True)
            seen.add((cut.mirrored, cut.start > 0, len(sample.info.pictures(stream)) < 14))
            pictures = sample.rgb if stream == "rgb" else sample.flow
            flag = cv2.IMREAD_COLOR_RGB if stream == "rgb" else cv2.IMREAD_GRAYSCALE
            decoded = [cv2.imdecode(np.frombuffer(p, np.uint8), flag) for p in pictures]
            if stream == "flow":
                decoded = [np.stack([p[:HEIGHT], p[HEIGHT:]], -1) for p in decoded]
            part = np.stack(decoded).astype(int)[cut.start : cut.start + 14]
            part = part[:, cut.top : cut.top + CROP, cut.left : cut.left + CROP]
            if cut.mirrored:
                part = part[:, :, ::-1].copy()
                if stream == "flow":
                    part[..., 0] = 128 - (part[..., 0] - 128)
            looped = part[np.arange(14) % len(part)]
            # The decoders' roundings of colour differ by a level here and there.
            assert np.abs(ours - looped).max() <= (0 if stream == "flow" else 2)
    assert {(True, True, False), (False, False, True), (True, False, True)} <= seen


def test_every_place_corner_and_side_is_as_likely(shards):
    info = next(s.info for s in open_dataset(shards).stream() if len(s.info.rgb) == 40)
    cuts = [
        Cut.draw(info, "rgb", (0, epoch, 5), frames=32, crop=CROP, flip=True)
        for epoch in range(3000)
    ]
    for name, most in (("start", 8), ("top", 6), ("left", 18), ("mirrored", 1)):
        counts = np.bincount([int(getattr(cut, name)) for cut in cuts], minlength=most + 1)
        assert len(counts) == most + 1
        expected = 3000 / len(counts)
        assert (np.abs(counts - expected) < 5 * expected**0.5).all(), name
    pairs = {(cut.start, cut.mirrored) for cut in cuts}
    assert len(pairs) == 18  # they do not go together
    assert not any(
        Cut.draw(info, "rgb", (0, e, 5), frames=9, crop=CROP, flip=False).mirrored
        for e in range(50)
    )


def test_mirrored_flow_is_the_flow_of_the_mirrored_video():
    """OpenCV's TV-L1 on mirrored frames."""
    rng = np.random.default_rng(0)
    pattern = cv2.GaussianBlur(rng.integers(0, 256, (96, 128), np.uint8), (0, 0), 2)
    pattern = cv2.normalize(pattern, None, 0, 255, cv2.NORM_MINMAX)
    frames = [np.roll(pattern, (i, 3 * i), (0, 1)) for i in range(2)]
    calc = cv2.optflow.DualTVL1OpticalFlow_create().calc
    flow = quantize_flow(calc(*frames, None)[None])
    of_mirrored = quantize_flow(calc(*(f[:, ::-1].copy() for f in frames), None)[None])
    inside = (slice(None), slice(16, -16), slice(16, -16))

    def distance(x):
        return np.abs(x[inside].astype(int) - of_mirrored[inside]).mean()

    assert (
        distance(mirror(flow, "flow", KINETICS_I3D.flow_storage)) < 0.5
    )  # measured 0.03 steps of 0.157 pixels
    assert distance(mirror(flow, "rgb", KINETICS_I3D.flow_storage)) > 10  # without the sign
    every = np.arange(1, 256, dtype=np.uint8).reshape(1, 1, 255, 1).repeat(2, -1)
    mirrored = mirror(every, "flow", KINETICS_I3D.flow_storage)
    np.testing.assert_array_equal(mirrored[0, 0, ::-1, 0], 256 - every[0, 0, :, 0].astype(int))
    np.testing.assert_array_equal(mirrored[0, 0, ::-1, 1], every[0, 0, :, 1])
    assert (
        flow_clip(mirrored, crop=1)[0, 0, 0, 0]
        == -flow_clip(every[:, :, 127:128], crop=1)[0, 0, 0, 0]
        == 0
    )


def test_mirrored_flow_of_the_chainer_program_has_the_opposite_pixels():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1).repeat(2, -1)
    storage = CHAINER_I3D.flow_storage
    before, after = (
        dequantize_flow(stored, storage=storage)
        for stored in (every, mirror(every, "flow", storage))
    )
    np.testing.assert_array_equal(after[0, 0, ::-1, 0], -before[0, 0, :, 0])
    np.testing.assert_array_equal(after[0, 0, ::-1, 1], before[0, 0, :, 1])


@pytest.mark.parametrize(("stream", "channels"), [("rgb", 3), ("flow", 2)])
def test_pixels_are_scaled_as_for_evaluation(stream, channels):
    pixels = torch.randint(1, 256, (2, 9, CROP, CROP, channels), dtype=torch.uint8)
    clips = scale_pixels(pixels, stream, KINETICS_I3D)
    to_clip = rgb_clip if stream == "rgb" else flow_clip
    assert torch.equal(clips, torch.stack([to_clip(p, crop=CROP) for p in pixels]))
    assert clips.is_contiguous(memory_format=torch.channels_last_3d)


def test_dropout_belongs_to_the_clip():
    masks = keep_masks((64, 7), drop=0.25, seed=1, epoch=2, places=np.arange(50))
    assert masks.shape == (50, 64, 7) and masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0, np.float32(1 / 0.75)}
    dropped = (masks == 0).float().mean().item()
    assert abs(dropped - 0.25) < 5 * (0.25 * 0.75 / masks.numel()) ** 0.5
    some = keep_masks((64, 7), drop=0.25, seed=1, epoch=2, places=np.array([30, 4]))
    assert torch.equal(some, masks[[30, 4]])
    other = keep_masks((64, 7), drop=0.25, seed=1, epoch=3, places=np.array([30, 4]))
    assert 0.55 < (some == other).float().mean() < 0.7  # 0.625 of independent ones


def test_videos_that_cannot_be_used_are_counted(tmp_path):
    folder = write_shards(
        tmp_path / "shards",
        [9] * 8 + [1],
        failed=["archery/00", "bowling/04"],
        unlabelled=["bowling/01", "clapping/02", "archery/03"],
    )
    data = open_training_set(folder, "flow")
    assert (len(data), data.unlabelled, data.failed, data.without_flow) == (3, 3, 2, 1)
    assert len(open_training_set(folder, "rgb")) == 4
    planned = list(data.dataset.manifest.samples())
    assert [planned[i].key for i in data.places] == list(data.keys)
    assert [CLASSES[i] for i in data.labels] == [key.partition("/")[0] for key in data.keys]
    assert "3 of 9 videos" in str(data) and "2 failed in precompute" in str(data)


def test_a_damaged_video_ends_the_run(tmp_path):
    folder = write_shards(tmp_path / "shards", [9] * 8)
    record = open_dataset(folder).index(0).samples[0]
    tar = folder / "shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[record.member("rgb.mjpeg").offset + 99] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{record.key}.*CRC32C"):
        train(folder, stream="rgb", output=tmp_path / "run", options=QUICK)
