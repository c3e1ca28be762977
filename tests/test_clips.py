"""Clips against their definitions, computed in exact or float64 arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from i3d.clips import (
    center_crop,
    dequantize_flow,
    flow_clip,
    loop_frames,
    quantize_flow,
    rgb_clip,
    scale_clip,
    scale_pixels,
)
from i3d.errors import I3DError, UsageError
from i3d.presets import CHAINER_I3D

RNG = np.random.default_rng(0)


def random_frames(count=3, height=10, width=13):
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def random_flow(count=3, height=10, width=13, scale=12.0):
    return (RNG.standard_normal((count, height, width, 2)) * scale).astype(np.float32)


def test_rgb_clip():
    frames = random_frames(5, 256, 341)
    clip = rgb_clip(frames)
    assert clip.shape == (3, 5, 224, 224)
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    cropped = frames[:, 16:240, 58:282].astype(np.float64)
    expected = (cropped / 127.5 - 1).transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(clip.numpy(), expected.astype(np.float32))


def test_rgb_values_are_the_nearest_float32():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    clip = rgb_clip(frames, crop=16)[0, 0].flatten().numpy()
    for x, value in enumerate(clip):
        exact = Fraction(2 * x, 255) - 1
        error = abs(Fraction(float(value)) - exact)
        for other in (np.nextafter(value, np.float32(-2)), np.nextafter(value, np.float32(2))):
            assert error <= abs(Fraction(float(other)) - exact)
    assert (clip[0], clip[255]) == (-1, 1)
    assert (clip == -clip[::-1]).all()
    assert np.abs(clip - (np.arange(256, dtype=np.float32) / np.float32(127.5) - 1)).max() < 6e-8


@pytest.mark.parametrize(("stream", "channels"), [("rgb", 3), ("flow", 2)])
def test_the_chainer_programs_scale(stream, channels):
    """``(x.astype(np.float32) - 128) / 128`` of both streams, which is exact."""
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=3)
    clip = scale_clip(torch.from_numpy(every), stream, CHAINER_I3D)
    expected = (every.astype(np.float32) - 128) / 128
    np.testing.assert_array_equal(clip.numpy(), expected.transpose(3, 0, 1, 2))
    batch = scale_pixels(torch.from_numpy(every)[None], stream, CHAINER_I3D)
    np.testing.assert_array_equal(batch[0].numpy(), clip.numpy())


def test_rgb_clip_accepts_tensors_and_odd_memory():
    frames = random_frames()
    expected = rgb_clip(frames, crop=8)
    before = frames.copy()
    frozen = frames.copy()
    frozen.flags.writeable = False
    tensor = torch.from_numpy(frames.copy())
    for other in (tensor, frozen, np.asfortranarray(frames), frames[:, :, ::-1][:, :, ::-1]):
        assert torch.equal(rgb_clip(other, crop=8), expected)
    assert (frames == before).all()
    assert (tensor.numpy() == before).all()


def test_quantised_flow_is_the_formula():
    flow = random_flow(20)
    exact = [
        round(min(max(Fraction(float(x)), Fraction(-20)), Fraction(20)) * 127 / 20) + 128
        for x in flow.flat
    ]
    stored = quantize_flow(flow)
    assert stored.dtype == np.uint8
    assert stored.shape == flow.shape
    assert stored.flatten().tolist() == exact
    assert (quantize_flow(torch.from_numpy(flow)).numpy() == stored).all()


@pytest.mark.parametrize(
    ("pixels", "stored"),
    [
        (0.0, 128),
        (-0.0, 128),
        (20.0, 255),
        (-20.0, 1),
        (1e30, 255),
        (-1e30, 1),
        (0.07, 128),
        (0.08, 129),
        (10.0, 192),  # 63.5 rounds to the even 64
        (-10.0, 64),
    ],
)
def test_stored_values(pixels, stored):
    flow = np.full((1, 2, 2, 2), pixels, np.float32)
    assert (quantize_flow(flow) == stored).all()
    assert (quantize_flow(torch.from_numpy(flow)) == stored).all()


def test_stored_flow_comes_back():
    stored = np.arange(256, dtype=np.uint8).reshape(1, 8, 16, 2)
    flow = dequantize_flow(stored)
    assert flow.dtype == np.float32
    exact = (stored.astype(np.float64) - 128) * 20 / 127
    np.testing.assert_array_equal(flow, exact.astype(np.float32))
    assert flow.flat[128] == 0
    assert torch.equal(dequantize_flow(torch.from_numpy(stored)), torch.from_numpy(flow))
    assert (quantize_flow(flow) == np.maximum(stored, 1)).all()
    original = np.clip(random_flow(), -20, 20)
    assert np.abs(dequantize_flow(quantize_flow(original)) - original).max() <= 10 / 127 + 1e-5


def test_flow_clip():
    flow = random_flow(4, 256, 300)
    clip = flow_clip(flow)
    assert clip.shape == (2, 4, 224, 224)
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    stored = quantize_flow(flow)[:, 16:240, 38:262].astype(np.float64)
    expected = ((stored - 128) / 127).transpose(3, 0, 1, 2).astype(np.float32)
    np.testing.assert_array_equal(clip.numpy(), expected)
    assert clip.abs().max() <= 1


def test_a_clip_from_a_shard_is_the_clip_from_the_video():
    flow = random_flow(4, 30, 40)
    stored = quantize_flow(flow)
    before = flow.copy()
    for other in (stored, torch.from_numpy(stored), torch.from_numpy(flow)):
        assert torch.equal(flow_clip(flow, crop=24), flow_clip(other, crop=24))
    assert (flow == before).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_bits_on_the_gpu():
    flow, frames = random_flow(20, 64, 64), random_frames(20, 64, 64)
    on_gpu = torch.from_numpy(flow).cuda()
    assert (quantize_flow(on_gpu).cpu().numpy() == quantize_flow(flow)).all()
    assert torch.equal(flow_clip(on_gpu, crop=60).cpu(), flow_clip(flow, crop=60))
    on_gpu = torch.from_numpy(frames).cuda()
    assert torch.equal(rgb_clip(on_gpu, crop=60).cpu(), rgb_clip(frames, crop=60))
    assert torch.equal(loop_frames(on_gpu, 45).cpu(), torch.from_numpy(loop_frames(frames, 45)))


@pytest.mark.parametrize(
    ("size", "crop", "top", "left"),
    [((10, 13), 8, 1, 2), ((10, 13), 10, 0, 1), ((11, 11), 11, 0, 0), ((7, 8), 2, 2, 3)],
)
def test_center_crop(size, crop, top, left):
    frames = random_frames(2, *size)
    expected = frames[:, top : top + crop, left : left + crop]
    cropped = center_crop(frames, crop)
    np.testing.assert_array_equal(cropped, expected)
    assert np.shares_memory(cropped, frames)
    assert torch.equal(center_crop(torch.from_numpy(frames), crop), torch.from_numpy(expected))


def test_loop_frames():
    frames = np.arange(3)
    assert loop_frames(frames, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert loop_frames(torch.arange(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert loop_frames(frames, 3) is frames
    assert loop_frames(frames, 2) is frames  # never cut
    frames = random_frames(2)
    assert (loop_frames(frames, 5) == frames[[0, 1, 0, 1, 0]]).all()
    with pytest.raises(I3DError, match="no frames to loop"):
        loop_frames(frames[:0], 5)


def test_clips_never_loop():
    assert rgb_clip(random_frames(1), crop=8).shape == (3, 1, 8, 8)
    assert flow_clip(random_flow(1), crop=8).shape == (2, 1, 8, 8)


def test_flow_of_no_frames_can_be_stored():
    stored = quantize_flow(random_flow(0))
    assert (stored.shape, stored.dtype) == ((0, 10, 13, 2), np.uint8)
    assert dequantize_flow(stored).shape == (0, 10, 13, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rgb_clip(random_frames()), "13x10 are smaller than the crop of 224x224; read"),
        (lambda: rgb_clip(random_frames().astype(np.float32)), "frames must be uint8 .* float32"),
        (
            lambda: rgb_clip(random_frames()[0]),
            r"uint8 \(T, H, W, 3\), not uint8 \(10, 13, 3\)",
        ),
        (lambda: rgb_clip(random_frames()[..., :2]), r"not uint8 \(3, 10, 13, 2\)"),
        (lambda: rgb_clip(random_frames(0), crop=8), "frames has no frames"),
        (lambda: rgb_clip(torch.zeros(1, 3, 8, 8)), r"not float32 \(1, 3, 8, 8\)"),
        (lambda: rgb_clip([[1]]), "must be a numpy array or torch tensor"),
        (lambda: flow_clip(random_flow()), "smaller than the crop"),
        (lambda: flow_clip(random_flow(0), crop=8), "flow has no frames"),
        (lambda: flow_clip(random_flow().astype(np.float64)), "float32 or uint8 .* not float64"),
        (lambda: flow_clip(random_frames()), r"\(T, H, W, 2\), not uint8 \(3, 10, 13, 3\)"),
        (lambda: quantize_flow(random_flow() * np.float32("nan")), "NaN or infinite"),
        (lambda: quantize_flow(random_flow() * np.float32("inf")), "NaN or infinite"),
        (lambda: quantize_flow(torch.full((1, 2, 2, 2), torch.inf)), "NaN or infinite"),
        (lambda: quantize_flow(random_frames()), "flow must be float32"),
        (lambda: dequantize_flow(random_flow()), "stored flow must be uint8"),
        (lambda: center_crop(random_frames()[0], 8), r"not shape \(10, 13, 3\)"),
    ],
)
def test_errors(call, words):
    with pytest.raises(I3DError, match=words):
        call()


def test_a_crop_of_nothing():
    with pytest.raises(UsageError):
        rgb_clip(random_frames(), crop=0)
