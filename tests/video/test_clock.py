"""Which frame is shown when: against a definition written out plainly."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from support.videos import (
    LEVELS,
    decode_all,
    reference_indices,
    video_bytes,
    which,
    write_video,
)

from i3d.video import DamagedVideoWarning, VideoReader, read_video

FORMATS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.avi": {},
    "h264.flv": {},
    "h264.ts": {},
    "h264.h264": {},
    "h264_10bit.mkv": {"pixel_format": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "qmax": "2"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2", "qmax": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mjpeg.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "ffv1_10bit.mkv": {"codec": "ffv1", "pixel_format": "yuv422p10le"},
    "ffv1_gray.mkv": {"codec": "ffv1", "pixel_format": "gray"},
    "rawvideo.y4m": {"codec": "rawvideo", "container": "yuv4mpegpipe"},
    "apng.apng": {"codec": "apng", "pixel_format": "rgb24"},
    "odd.mp4": {"pixel_format": "yuv444p", "width": 65, "height": 49},
}


@pytest.mark.parametrize("name", FORMATS)
def test_constant_25_fps_maps_one_to_one(tmp_path, name):
    path = write_video(tmp_path / name, 30, **FORMATS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedVideoWarning)
        frames = read_video(path)
    assert frames.dtype == np.uint8
    assert frames.flags.c_contiguous
    assert which(frames) == [i % LEVELS for i in range(30)]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "rate", [1, 10, 12, 15, Fraction(24000, 1001), 24, Fraction(30000, 1001), 30, 50, 60, 120]
)
def test_other_rates(tmp_path, rate, container):
    path = write_video(tmp_path / f"v.{container}", 40, rate=rate)
    _, stamps, duration, time_base = decode_all(path)
    shown = reference_indices(stamps, duration, time_base)
    assert which(read_video(path)) == [i % LEVELS for i in shown]


@pytest.mark.parametrize("seed", range(6))
def test_variable_rate(tmp_path, seed):
    rng = np.random.default_rng(seed)
    gaps = rng.choice([1, 5, 19, 20, 21, 33, 40, 41, 100, 400], 60)
    stamps = [0, *np.cumsum(gaps).tolist()]
    path = write_video(
        tmp_path / "v.mkv", len(stamps), pts=[s + 777 for s in stamps], time_base=Fraction(1, 1000)
    )
    _, read, duration, time_base = decode_all(path)
    assert read == stamps
    shown = reference_indices(stamps, duration, time_base)
    assert which(read_video(path)) == [i % LEVELS for i in shown]
    shown = reference_indices(stamps, duration, time_base, fps=Fraction(10), start=1, end=2)
    frames = read_video(path, fps=10, start_seconds=1, end_seconds=2)
    assert which(frames) == [i % LEVELS for i in shown]


def test_half_a_tick_is_tolerated(tmp_path):
    # 24 ticks a second: output k is due at 0.96 k ticks and shows the nearest tick's frame.
    path = write_video(tmp_path / "v.avi", 48, rate=24, codec="mpeg4")
    expected = [math.floor(Fraction(24 * k, 25) + Fraction(1, 2)) for k in range(50)]
    assert which(read_video(path)) == [i % LEVELS for i in expected]


def test_the_number_of_frames_follows_the_duration(tmp_path):
    # A last frame that begins after the last output is due is not shown.
    stamps = [0, 40, 80, 110, 112]
    path = write_video(
        tmp_path / "v.mp4",
        5,
        codec="mpeg4",
        pts=stamps,
        time_base=Fraction(1, 1000),
        prepare=lambda frame, i: (setattr(frame, "duration", 2) if i == 4 else None) or frame,
    )
    _, read, duration, time_base = decode_all(path)
    shown = reference_indices(read, duration, time_base)
    assert which(read_video(path)) == shown


def test_gif_delays(tmp_path):
    path = write_video(tmp_path / "v.gif", 10, codec="gif", pixel_format="rgb8", rate=10)
    frames = read_video(path)
    assert which(frames) == [math.floor(k * 10 / 25) % LEVELS for k in range(25)]


def test_one_frame_and_still_images(tmp_path):
    assert len(read_video(write_video(tmp_path / "v.mp4", 1))) == 1
    fast = write_video(tmp_path / "fast.mp4", 1, rate=1000, codec="mpeg4")
    assert len(read_video(fast)) == 1
    assert len(read_video(video_bytes(1, container="image2pipe", codec="mjpeg",
                                      pixel_format="yuvj420p"))) == 1  # fmt: skip


def test_fps_and_repeats(tmp_path):
    path = write_video(tmp_path / "v.mp4", 20, rate=10)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert frames[0] is frames[1]  # converted once
    assert len(read_video(path, fps=12.5)) == 25
    assert which(read_video(path, fps=10)) == [i % LEVELS for i in range(20)]


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_a_file_that_does_not_begin_at_0(tmp_path, container):
    path = write_video(
        tmp_path / f"v.{container}",
        200,
        pts=[i + 5000 for i in range(200)],
        gop=20,
        container_options={"avoid_negative_ts": "disabled"},
    )
    whole = read_video(path)
    assert which(whole) == [i % LEVELS for i in range(200)]
    np.testing.assert_array_equal(
        read_video(path, start_seconds=5.2, end_seconds=6), whole[130:150]
    )


def test_edit_list(tmp_path):
    # The file says that its first 7 frames are only there to decode the others.
    path = write_video(
        tmp_path / "v.mp4",
        100,
        pts=[i - 7 for i in range(100)],
        gop=20,
        options={"bf": "2", "sc_threshold": "0"},
        container_options={"avoid_negative_ts": "disabled"},
    )
    frames, stamps, duration, time_base = decode_all(path)
    assert len(frames) == 93
    whole = read_video(path)
    shown = reference_indices(stamps, duration, time_base)
    assert which(whole) == [(i + 7) % LEVELS for i in shown]
    np.testing.assert_array_equal(read_video(path, start_seconds=2), whole[50:])


def jump(at, *, seconds, until=None):
    """An ``edit_packet`` that moves the packets from ``at`` on (to ``until``) by so much."""

    def edit(packet, index):
        if index >= at and (until is None or index < until):
            ticks = int(seconds / packet.time_base)
            packet.pts += ticks
            packet.dts += ticks if until is None else 0

    return edit


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("until", [6, None])
def test_a_jump_of_hours_is_closed(tmp_path, container, until):
    edit = jump(5, seconds=3 * 3600, until=until)
    path = write_video(tmp_path / f"v.{container}", 30, codec="mpeg4", edit_packet=edit)
    with pytest.warns(DamagedVideoWarning, match="1 jumps of the time stamps"):
        shown = which(read_video(path))
    assert len(shown) <= 30 + 25  # a second where nothing else tells the rate
    distinct = [a for a, b in zip(shown, [*shown[1:], None], strict=True) if a != b]
    assert distinct == [i % LEVELS for i in range(30)]


def test_a_frame_may_be_held_for_a_minute(tmp_path):
    path = write_video(tmp_path / "v.mp4", 3, pts=[0, 1000, 60_500], time_base=Fraction(1, 1000))
    frames = read_video(path, fps=1)
    assert which(frames)[:61] == [0] + [1] * 60


def test_streams_one_after_the_other():
    part = video_bytes(20, container="mpegts")
    with VideoReader(part * 3) as reader:
        assert which(list(reader)) == [i % LEVELS for i in range(20)] * 3
        assert reader.closed_gaps == 2
    with pytest.warns(DamagedVideoWarning, match="2 jumps"):
        assert which(read_video(part * 3, start_seconds=0.4)) == [
            i % LEVELS for i in [*range(10, 20), *range(20), *range(20)]
        ]


def test_duplicate_time_stamps(tmp_path):
    path = write_video(
        tmp_path / "v.mkv", 6, codec="ffv1", pts=[0, 40, 41, 41, 80, 120],
        time_base=Fraction(1, 1000),
    )  # fmt: skip
    _, stamps, duration, time_base = decode_all(path)
    assert which(read_video(path)) == reference_indices(stamps, duration, time_base)
