"""TV-L1 flow: against OpenCV to the last bit, deterministic, and clear about wrong input."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from support.flow import moved, opencv_flow, texture, translated
from support.paths import ROOT

from i3d.errors import I3DError
from i3d.flow import TVL1, optical_flow, stream_flow

CLIPS = ROOT.parent / "shared" / "clips"

# OpenCV warps with Intel's IPP on x86-64; cpu.py rounds as IPP's AVX-512 code does. On another
# processor or build both are right, and differ as OpenCV's own versions do.
SAME_ARITHMETIC = cv2.ipp.useIPP() and "AVX-512" in cv2.ipp.getIppVersion()


def assert_like_opencv(frames):
    """Compares every pair of (T, H, W) gray frames."""
    for ours, first, second in zip(optical_flow(frames), frames[:-1], frames[1:], strict=True):
        reference = opencv_flow(first, second)
        if SAME_ARITHMETIC:
            # measured: 67 of 69 pairs of the clips (among them those below) and all synthetic ones
            # are identical; one wrong last bit in 40 million roots costs the others 2e-4 px
            np.testing.assert_array_equal(ours, reference)
        else:
            distance = np.hypot(*np.moveaxis(ours - reference, -1, 0))
            # measured with one operation rounded differently: up to 0.031 px, 0.8% of the pixels
            assert distance.mean() < 0.05
            assert (distance > 0.5).mean() < 0.015


@pytest.mark.parametrize(
    ("height", "width"), [(96, 128), (57, 91), (16, 16), (17, 250), (64, 65), (31, 47)]
)
def test_synthetic_motion_is_opencvs(height, width):
    pattern = texture(height + 32, width + 32)
    rotation = cv2.getRotationMatrix2D((width / 2, height / 2), 2, 1.01)
    assert_like_opencv(
        np.stack(
            [translated(pattern, 0, 0), translated(pattern, 1.7, -2.4), moved(pattern, rotation)]
        )
    )


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no folder {CLIPS}")
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("arm_wrestling_340x256_28fps.mp4", 60),  # rounding differently costs 0.03 px here
        ("mpeg4_320x240_25fps.avi", 20),  # nearly still: stops after two or three iterations
        ("v_GGSY1Qvo990_320x240_19.62fps.mp4", 140),
    ],
)
def test_real_clips_are_opencvs(name, start):
    assert_like_opencv(decode_gray(CLIPS / name, start, 2))


def decode_gray(path, start, count):
    import av

    frames = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index >= start + count:
                break
            if index >= start:
                image = frame.to_ndarray(format="rgb24")
                scale = 256 / min(image.shape[:2])
                size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
                image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
                frames.append(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    return np.stack(frames)


def test_known_translation():
    pattern = texture(128, 160)
    flow = optical_flow(np.stack([translated(pattern, 0, 0), translated(pattern, 3, -2)]))
    assert flow.shape == (1, 96, 128, 2)
    assert flow.dtype == np.float32
    inside = flow[0, 12:-12, 12:-12]
    np.testing.assert_allclose(inside.mean((0, 1)), [3, -2], atol=0.05)  # measured 0.013


def test_still_and_constant_frames_have_exactly_no_flow():
    still = np.stack([translated(texture(96, 96), 0, 0)] * 2)
    flat = np.stack([np.full((40, 50), 7, np.uint8), np.full((40, 50), 90, np.uint8)])
    for frames in (still, flat):
        flow = optical_flow(frames)
        assert not flow.any()
        assert not opencv_flow(*frames).any()


def test_motion_far_outside_the_image():
    """Every warped pixel may leave the image; there OpenCV reads zeros, and so do we."""
    rng = np.random.default_rng(3)
    assert_like_opencv(rng.integers(0, 256, (2, 40, 48), np.uint8))
    black_and_white = np.zeros((2, 40, 48), np.uint8)
    black_and_white[0, :, :24] = black_and_white[1, :, 40:] = 255
    assert_like_opencv(black_and_white)


def rgb_frames(count, height=48, width=70):
    rng = np.random.default_rng(5)
    pattern = [texture(height + 32, width + 32, seed) for seed in range(3)]
    shifts = rng.uniform(-2, 2, (count, 2))
    return np.stack([np.stack([translated(p, *s) for p in pattern], -1) for s in shifts])


def test_colour_is_converted_as_opencv_does():
    frames = rgb_frames(2)
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    np.testing.assert_array_equal(optical_flow(frames), optical_flow(gray))


def test_same_bits_from_any_memory_layout():
    frames = rgb_frames(3)
    expected = optical_flow(frames)
    for offset in (1, 2, 3, 5, 17, 33):  # bytes
        memory = np.zeros(frames.size + 64, np.uint8)
        shifted = memory[offset : offset + frames.size].reshape(frames.shape)
        shifted[:] = frames
        np.testing.assert_array_equal(optical_flow(shifted), expected)
    strided = np.zeros((3, 96, 140, 6), np.uint8)[:, ::2, ::2, ::2]
    strided[:] = frames
    frames.flags.writeable = False
    for layout in (strided, frames[:, ::-1][:, ::-1], np.asfortranarray(frames)):
        np.testing.assert_array_equal(optical_flow(layout), expected)
    np.testing.assert_array_equal(optical_flow(torch.from_numpy(frames.copy())), expected)


def test_same_bits_wherever_the_solvers_memory_lies():
    from i3d.flow import cpu

    parameters = TVL1()
    frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb_frames(2)]
    scales = [cpu.build_scales(frame, parameters) for frame in frames]
    expected = cpu.PairSolver(48, 70, parameters).flow(*scales)

    def misaligned(array, floats):
        memory = np.zeros(array.size + 32, np.float32)
        copy = memory[floats : floats + array.size].reshape(array.shape)
        copy[:] = array
        return copy

    for floats in (1, 3, 6, 11):
        solver = cpu.PairSolver(48, 70, parameters)
        solver.works = [cpu.Work(*(misaligned(a, floats) for a in w)) for w in solver.works]
        moved_scales = [[cpu.Scale(*(misaligned(a, floats) for a in s)) for s in f] for f in scales]
        np.testing.assert_array_equal(solver.flow(*moved_scales), expected)


def test_same_bits_with_threads_streaming_and_position():
    frames = rgb_frames(6)
    expected = optical_flow(frames)
    np.testing.assert_array_equal(optical_flow(frames, threads=3), expected)
    np.testing.assert_array_equal(optical_flow(frames, device="auto"), expected)
    np.testing.assert_array_equal(np.stack(list(stream_flow(iter(frames)))), expected)
    np.testing.assert_array_equal(optical_flow(frames[3:5])[0], expected[3])


@pytest.mark.parametrize("threads", [1, 2])
def test_streaming_reads_only_a_little_ahead(threads):
    read = []

    def source():
        for index, frame in enumerate(rgb_frames(12)):
            read.append(index)
            yield frame

    flows = stream_flow(source(), threads=threads)
    assert read == []
    next(flows)
    assert len(read) <= 2 * threads + 1
    flows.close()


def test_fewer_than_two_streamed_frames_have_no_flow():
    assert list(stream_flow([])) == []
    assert list(stream_flow(rgb_frames(1))) == []


def test_opencvs_threads_are_left_alone():
    before = cv2.getNumThreads()
    optical_flow(rgb_frames(2))
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), "at least 2"),
        (np.zeros((0, 32, 32, 3), np.uint8), "at least 2"),
        (np.zeros((32, 32), np.uint8), r"shape \(32, 32\)"),
        (np.zeros((2, 32, 32, 4), np.uint8), r"frame 0 has shape \(32, 32, 4\)"),
        (np.zeros((2, 32, 32, 3), np.float32), "float32; flow needs uint8"),
        (np.zeros((2, 15, 32), np.uint8), "32x15 pixels"),
        (np.zeros((48, 64, 3), np.uint8), "3x64 pixels"),  # one RGB frame instead of several
    ],
)
def test_wrong_frames(frames, message):
    with pytest.raises(I3DError, match=message):
        optical_flow(frames)


def test_wrong_options():
    frames = rgb_frames(2)
    with pytest.raises(I3DError, match="unknown device"):
        stream_flow(frames, device="tpu")
    with pytest.raises(I3DError, match="threads=0"):
        stream_flow(frames, threads=0)
    with pytest.raises(I3DError, match="frame 1 is 33x32 pixels, the first one 32x32"):
        list(stream_flow([np.zeros((32, 32), np.uint8), np.zeros((32, 33), np.uint8)]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": 0},
        {"scale_step": 1.0},
        {"tau": 0.0},
        {"theta": float("nan")},
        {"warps": 0},
        {"epsilon": -1.0},
    ],
)
def test_wrong_parameters(wrong):
    with pytest.raises(I3DError, match=next(iter(wrong))):
        TVL1(**wrong)


def test_other_parameters_are_opencvs():
    pattern = texture(90, 100)
    frames = np.stack([translated(pattern, 0, 0), translated(pattern, 1, 1)])
    reference = cv2.optflow.DualTVL1OpticalFlow_create(
        tau=0.2, lambda_=0.1, theta=0.25, nscales=3, warps=2, epsilon=0.02, innnerIterations=7
    ).calc(*frames, None)
    ours = optical_flow(
        frames,
        parameters=TVL1(
            tau=0.2, lambda_=0.1, theta=0.25, scales=3, warps=2, epsilon=0.02, inner_iterations=7
        ),
    )
    np.testing.assert_allclose(ours[0], reference, atol=0 if SAME_ARITHMETIC else 0.1)


@pytest.mark.slow
def test_import_is_light_and_uncached_kernels_give_the_same_bits(tmp_path):
    """As in a read-only installation without a home: compiled anew, since nothing can be kept."""
    script = """
import sys, numpy as np
import i3d.flow
assert "numba" not in sys.modules and "cv2" not in sys.modules
from numba.core import caching
caching.CacheImpl._locator_classes = []
np.save("flow.npy", i3d.flow.optical_flow(np.load("frames.npy")))
"""
    frames = rgb_frames(2)
    np.save(tmp_path / "frames.npy", frames)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "flow.npy"), optical_flow(frames))
