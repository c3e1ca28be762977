"""The reader against definitions written out plainly: which frame is shown, which colour it has."""

import errno
import http.server
import io
import math
import signal
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from fractions import Fraction

import av
import cv2
import fsspec
import numpy as np
import pytest
from support.paths import ROOT
from support.videos import (
    LEVELS,
    gray_frame,
    level,
    noise_images,
    video_bytes,
    which,
    write_audio,
    write_two_sizes,
    write_video,
)

from i3d import video
from i3d.errors import StorageError, UsageError, VideoError
from i3d.video import DamagedVideoWarning, VideoReader, probe_video, read_video

CLIPS = ROOT.parent / "shared" / "clips"


def reference_indices(stamps, duration, time_base, fps=25, start=0, end=None):
    """The definition: for each k, the last frame whose stamp is not after start + k / fps.

    ``stamps`` and ``duration`` are in ticks from the first frame.
    """
    fps, start = Fraction(fps), Fraction(start)
    last = stamps[-1] + duration if end is None else min(stamps[-1] + duration, end / time_base)
    count = max(1, round(fps * (last * time_base - start)))
    shown = []
    for k in range(count):
        now = start + k / fps
        shown.append(max(i for i, s in enumerate(stamps) if s * time_base <= now + time_base / 2))
    return shown


def decode_all(path):
    """(frames, ticks since the first one, last frame's duration, time base), by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        stamps = [f.pts - frames[0].pts for f in frames]
        return frames, stamps, frames[-1].duration, stream.time_base


# Sampling


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no clips in {CLIPS}")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("arm_wrestling_340x256_28fps.mp4", 250),
        ("mpeg4_320x240_25fps.avi", 164),
        ("v_GGSY1Qvo990_320x240_19.62fps.mp4", 452),
    ],
)
def test_real_clips(name, count):
    frames, stamps, duration, time_base = decode_all(CLIPS / name)
    if name.endswith(".avi"):  # stores no presentation times; it is 25 fps, so one to one
        shown = list(range(len(frames)))
    else:
        shown = reference_indices(stamps, duration, time_base)
    output = read_video(CLIPS / name)
    assert output.shape[0] == count == len(shown)
    height, width = output.shape[1:3]
    for k in range(0, count, 7):
        rgb = frames[shown[k]].to_ndarray(format="rgb24")
        if rgb.shape[:2] != (height, width):
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(output[k], rgb)


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


@pytest.mark.parametrize("rate", [7, 25, 60])
def test_every_frame_as_it_is(tmp_path, rate):
    """Neither sampled nor resized: PyAV's frames, one to one, whatever the rate and the stamps."""
    path = tmp_path / "v.mp4"
    write_video(path, noise_images(11), rate=rate, pts=[i + i // 4 for i in range(11)])
    theirs = [frame.to_ndarray(format="rgb24") for frame in decode_all(path)[0]]
    ours = read_video(path, fps=None, short_side=None)
    np.testing.assert_array_equal(ours, theirs)
    halved = read_video(path, fps=None, short_side=32)
    assert halved.shape == (11, 32, 48, 3)


def test_only_frames_put_out_are_converted(tmp_path, monkeypatch):
    calls = []
    convert = VideoReader._rgb
    monkeypatch.setattr(VideoReader, "_rgb", lambda s, f: calls.append(f.pts) or convert(s, f))
    assert len(read_video(write_video(tmp_path / "fast.mp4", 60, rate=60))) == 25
    assert len(calls) == len(set(calls)) == 25
    calls.clear()
    assert len(read_video(write_video(tmp_path / "slow.mp4", 10, rate=10))) == 25
    assert len(calls) == 10
    calls.clear()
    read_video(tmp_path / "fast.mp4", start_seconds=0.5, end_seconds=0.6)
    assert len(calls) == 2


# Windows: seeking gives the frames of decoding from the start

LONG_GOPS = {
    "b-frames.mp4": {"gop": 100, "options": {"bf": "3", "sc_threshold": "0"}},
    "b-frames.mkv": {"gop": 100, "options": {"bf": "3", "sc_threshold": "0"}},
    "open-gop.mp4": {"gop": 30, "options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "open-gop.mkv": {"gop": 30, "options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "intra-refresh.mp4": {"gop": 30, "options": {"x264-params": "intra-refresh=1:scenecut=0"}},
    "hevc.mp4": {
        "codec": "libx265",
        "gop": 30,
        "options": {"x265-params": "log-level=none:open-gop=1:keyint=30:scenecut=0"},
    },
    "mpeg4.mp4": {"codec": "mpeg4", "gop": 24, "options": {"bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 24, "options": {"bf": "2"}},
    "mpeg4-p.avi": {"codec": "mpeg4", "gop": 24},
    "h264.ts": {"gop": 30},
    "h264.flv": {"gop": 30},
    "h264.h264": {"gop": 30},
    "fragmented.mp4": {"gop": 30, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 40, "options": {"deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "gop": 40, "options": {"auto-alt-ref": "1",
                                                           "lag-in-frames": "16"}},
    "v.gif": {"codec": "gif", "pixel_format": "rgb8"},
}  # fmt: skip


@pytest.mark.parametrize("name", LONG_GOPS)
def test_a_window_is_a_part_of_the_whole(tmp_path, name):
    options = LONG_GOPS[name] | ({} if name == "v.gif" else {"rate": 30})
    path = write_video(tmp_path / name, noise_images(330), **options)
    whole = read_video(path, short_side=64)
    seconds = len(whole) // 25
    assert seconds in (11, 13)  # 330 frames at 30 fps, or at the 25 fps of the GIF
    for start, end in [(0, 1), (0.04, 1), (1, 1.04), (3.32, 5), (3.36, 4), (4, 7), (6.68, 9.2),
                       (10.6, 30), (10.96, None), (9.96, None), (2, None)]:  # fmt: skip
        part = read_video(path, short_side=64, start_seconds=start, end_seconds=end)
        stop = None if end is None else round(25 * end)
        np.testing.assert_array_equal(part, whole[round(25 * start) : stop], f"{start} {end}")


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "vp9.webm"])
def test_a_window_is_found_by_seeking(tmp_path, name):
    path = write_video(tmp_path / name, 1000, **LONG_GOPS[name])
    with VideoReader(path, start_seconds=33, end_seconds=34) as reader:
        assert which(list(reader)) == [i % LEVELS for i in range(33 * 25, 34 * 25)]
        assert reader.decoded_frames < 200
        assert reader.lost_frames == 0


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


def test_a_start_past_the_end(tmp_path):
    path = write_video(tmp_path / "v.mp4", 25)
    with pytest.raises(VideoError, match=r"start_seconds=1 is past the end of .*v\.mp4.*1 s"):
        read_video(path, start_seconds=1)
    assert len(read_video(path, start_seconds=0.96, end_seconds=7)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"start_seconds": -1},
        {"start_seconds": float("nan")},
        {"start_seconds": "x"},
        {"end_seconds": 0},
        {"start_seconds": 2, "end_seconds": 1},
        {"end_seconds": float("inf")},
        {"fps": 0},
        {"fps": -25},
        {"short_side": 0},
        {"fps": None, "start_seconds": 1},
        {"fps": None, "end_seconds": 1},
        {"threads": 0},
    ],
)
def test_arguments_that_make_no_sense(arguments):
    with pytest.raises(UsageError):
        VideoReader(b"not opened", **arguments)


# Time stamps that are missing or wrong


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


# Size and orientation


@pytest.mark.parametrize(
    ("size", "output"),
    [
        ((64, 48), (341, 256)),
        ((48, 64), (256, 341)),
        ((340, 256), (340, 256)),
        ((426, 240), (454, 256)),
        ((640, 360), (455, 256)),
        ((16, 16), (256, 256)),
        ((1280, 64), (5120, 256)),
    ],
)
def test_output_size(size, output):
    with VideoReader(video_bytes([gray_frame(0, *size)])) as reader:
        frame = next(iter(reader))
    assert frame.shape == (output[1], output[0], 3)
    assert reader.source_size == (size[1], size[0])


def test_resize_is_opencvs(tmp_path):
    image = noise_images(1, 120, 90)[0]
    path = write_video(tmp_path / "v.mkv", [image], codec="ffv1", pixel_format="bgr0")
    frames = read_video(path)
    np.testing.assert_array_equal(frames[0], cv2.resize(image, (341, 256)))
    np.testing.assert_array_equal(read_video(path, short_side=90)[0], image)


def test_pixel_aspect_ratio_is_ignored(tmp_path):
    path = write_video(tmp_path / "v.mp4", 2, options={"x264-params": "sar=4/3"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    assert read_video(path).shape == (2, 256, 341, 3)


CORNERS = np.full((48, 96, 3), 40, np.uint8)  # three marks that no turn or mirror leaves in place
CORNERS[:24, :48] = 120
CORNERS[:24, 48:] = 200


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrors", [(False, False), (True, False), (False, True), (True, True)])
def test_rotation(tmp_path, degrees, mirrors):
    path = write_video(tmp_path / "v.mp4", [CORNERS] * 2, rotation=(degrees, *mirrors))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        if mirrors == (False, False):  # FFmpeg: the display turns it counterclockwise
            assert frame.rotation % 360 == degrees
    expected = np.rot90(CORNERS, degrees // 90)
    expected = expected[:: -1 if mirrors[1] else 1, :: -1 if mirrors[0] else 1]
    output = read_video(path, short_side=48)[0]
    assert output.shape == expected.shape
    assert np.abs(output.astype(int) - expected).mean() < 3


def test_size_that_changes_in_the_middle(tmp_path):
    path = write_two_sizes(tmp_path / "v.h264", (64, 48), (48, 96))
    frames = read_video(path)
    assert frames.shape == (20, 256, 341, 3)
    assert which(frames) == [i % LEVELS for i in range(20)]


# Colour

MATRIX = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
TAGS = {None: 2, "601": 6, "709": 1, "2020": 9}


def closed_form_rgb(y, u, v, matrix, *, full, bits):
    """ITU-R BT.601/709/2020: the RGB of one YUV value."""
    one = 2 ** (bits - 8)
    top = 256 * one - 1
    luma = y / top if full else (y - 16 * one) / (219 * one)
    cb, cr = ((c - 128 * one) / (top if full else 224 * one) for c in (u, v))
    kr, kb = MATRIX[matrix]
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(255 * np.array([red, green, blue]), 0, 255)


def flat_yuv(pixel_format, yuv, width=64, height=48):
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, value in zip(frame.planes, yuv, strict=True):
        dtype = np.uint16 if "10le" in pixel_format else np.uint8
        plane.update(np.full(plane.buffer_size // dtype().itemsize, value, dtype).tobytes())
    return frame


@pytest.mark.parametrize("size", [(64, 48), (1280, 720)])
@pytest.mark.parametrize("full", [None, False, True])
@pytest.mark.parametrize("matrix", TAGS)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_matrix_and_range_are_honoured(tmp_path, pixel_format, matrix, full, size):
    bits = 10 if pixel_format.endswith("10le") else 8
    yuv = [c << (bits - 8) for c in (110, 150, 90)]
    frame = flat_yuv(pixel_format, yuv, *size)
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for tagged in (frame, stream.codec_context):
            tagged.colorspace = TAGS[matrix]
            tagged.color_range = {None: 0, False: 1, True: 2}[full]
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        assert (stored.colorspace, stored.color_range == 2) == (TAGS[matrix], full is True)
    expected = closed_form_rgb(*yuv, matrix or "601", full=full is True, bits=bits)
    rgb = read_video(path)[0].reshape(-1, 3).astype(float)
    # FFmpeg's default conversion: measured at most 2.1 (8 bits) and 2.9 (10 bits)
    assert np.abs(rgb - expected).max() < (3.1 if bits == 10 else 2.3)


def test_yuvj_is_full_range(tmp_path):
    path = tmp_path / "v.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        frame = flat_yuv("yuvj420p", (110, 150, 90))
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    expected = closed_form_rgb(110, 150, 90, "601", full=True, bits=8)
    assert np.abs(read_video(path)[0].reshape(-1, 3) - expected).max() < 3.1  # JPEG's own: 1


def test_transparency_is_dropped(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgra"
        frame = av.VideoFrame.from_ndarray(
            np.full((48, 64, 4), (10, 60, 200, 0), np.uint8), format="bgra"
        )
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert (read_video(path) == (200, 60, 10)).all()


# Sources


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves one file's bytes; answers ranges if the server says so."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        data = self.server.data
        if self.path != "/v.mp4":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            first = int(first)
            last = min(int(last) if last else len(data) - 1, len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as server:
        server.ranges = request.param
        server.data = video_bytes(60)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_http(server):
    url = f"http://127.0.0.1:{server.server_port}/v.mp4"
    np.testing.assert_array_equal(read_video(url), read_video(server.data))
    np.testing.assert_array_equal(
        read_video(url, start_seconds=1, end_seconds=1.4), read_video(server.data)[25:35]
    )
    with pytest.raises(VideoError, match=r"there is no file http.*missing\.mp4"):
        read_video(url.replace("v.mp4", "missing.mp4"))


def test_every_kind_of_source(tmp_path):
    path = write_video(tmp_path / "v.mp4", 10)
    data = path.read_bytes()
    with fsspec.open("memory://folder/v.mp4", "wb") as file:
        file.write(data)
    expected = read_video(path)
    for source in (str(path), f"file://{path}", "memory://folder/v.mp4", data, bytearray(data),
                   memoryview(data)):  # fmt: skip
        np.testing.assert_array_equal(read_video(source), expected)
    file = io.BytesIO(data)
    file.seek(100)
    np.testing.assert_array_equal(read_video(file), expected)
    assert not file.closed
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_video(file, start_seconds=0.2), expected[5:])


def test_a_stream_that_cannot_seek():
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.data.readinto(buffer)

    data = video_bytes(50, container="matroska", gop=5)
    frames = read_video(Pipe(data), start_seconds=1)
    assert which(frames) == [i % LEVELS for i in range(25, 50)]


def test_iterate_once(tmp_path):
    with VideoReader(video_bytes(3)) as reader:
        assert len(list(reader)) == 3
        with pytest.raises(UsageError, match="read already"):
            list(reader)


def test_probe(tmp_path):
    path = write_video(tmp_path / "v.mp4", 60, rate=30)
    info = probe_video(path)
    assert info == video.VideoInfo(
        name=str(path), container="mov,mp4,m4a,3gp,3g2,mj2", codec="h264", width=64, height=48,
        fps=30.0, frames=60, duration_seconds=2.0,
    )  # fmt: skip
    assert probe_video(video_bytes(5, container="h264")).frames is None


def test_reader_attributes():
    with VideoReader(video_bytes(60, rate=30), end_seconds=1) as reader:
        assert len(list(reader)) == 25
        assert reader.duration_seconds is None
        assert 30 <= reader.decoded_frames <= 32
    with VideoReader(video_bytes(60, rate=30)) as reader:
        assert len(list(reader)) == 50
        assert (reader.duration_seconds, reader.decoded_frames, reader.lost_frames) == (2, 60, 0)
        assert reader.damage is None


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_frames(threads):
    data = video_bytes(noise_images(40), options={"bf": "2"})
    np.testing.assert_array_equal(read_video(data, threads=threads), read_video(data))


# Damage


def damage(data, begin, end, seed=0):
    """Overwrite a part of a file, given as fractions of its length."""
    begin, end = int(len(data) * begin), int(len(data) * end)
    return data[:begin] + np.random.default_rng(seed).bytes(end - begin) + data[end:]


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_a_damaged_middle_loses_only_itself(container):
    data = video_bytes(
        noise_images(100), container=container, gop=10, options={"sc_threshold": "0"}
    )
    whole = read_video(data)
    with VideoReader(damage(data, 0.4, 0.45)) as reader:
        frames = np.stack(list(reader))
    if container != "matroska":  # its demuxer skips what it cannot parse, without a sign
        with pytest.warns(DamagedVideoWarning, match=r"^<\d+ bytes>: "):
            np.testing.assert_array_equal(read_video(damage(data, 0.4, 0.45)), frames)
    if container in ("mp4", "avi"):  # have a list of all packets
        assert reader.decoded_frames + reader.lost_frames == 100
    assert abs(len(frames) - 100) <= 10  # AVI has no time stamps to tell what is missing
    np.testing.assert_array_equal(frames[:25], whole[:25])
    np.testing.assert_array_equal(frames[-35:], whole[-35:])


def test_lost_frames_are_counted():
    sizes = []
    data = video_bytes(
        noise_images(50), codec="mjpeg", pixel_format="yuvj420p", container="mov",
        edit_packet=lambda packet, i: sizes.append(packet.size),
    )  # fmt: skip
    begin = data.find(b"mdat") + 4 + sum(sizes[:20])
    assert data[begin : begin + 2] == b"\xff\xd8"  # the 20th JPEG
    length = sum(sizes[20:23])
    broken = data[:begin] + bytes(length) + data[begin + length :]
    with pytest.warns(DamagedVideoWarning, match="3 of 50 frames could not be decoded"):
        frames = read_video(broken)
    whole = read_video(data)
    whole[20:23] = whole[19]  # the frame before them stays on show
    np.testing.assert_array_equal(frames, whole)
    with VideoReader(broken, end_seconds=0.84) as reader:
        assert len(list(reader)) == 21
        assert reader.lost_frames in (1, 2, 3)  # those read by then


def test_a_file_that_is_cut_short(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, noise_images(100), gop=10, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    with VideoReader(data[: len(data) // 2]) as reader:
        frames = list(reader)
    assert 40 <= len(frames) <= 60
    assert reader.decoded_frames + reader.lost_frames == 100
    np.testing.assert_array_equal(frames[:40], read_video(data)[:40])
    with VideoReader(data[: len(data) // 2], end_seconds=1) as reader:
        assert len(list(reader)) == 25
    assert reader.lost_frames == 0


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_file_that_is_cut_short(codec):
    """The index, at its end, is gone, and FFmpeg reports nothing; the header has the number."""
    data = video_bytes(noise_images(100), container="avi", codec=codec)
    with VideoReader(data[: len(data) // 2]) as reader:
        frames = len(list(reader))
    assert 20 <= frames <= 60
    assert reader.decoded_frames + reader.lost_frames == 100
    with VideoReader(data[: len(data) // 2], start_seconds=0.5) as reader:
        assert abs(len(list(reader)) - (frames - 12.5)) < 1
    assert reader.damage is not None
    with VideoReader(data) as reader:
        assert len(list(reader)) == 100
    assert reader.damage is None


def picture_with_cover(path):
    """A song with a cover: sound, and one picture marked as attached."""
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=16000)
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
        picture = av.VideoFrame.from_ndarray(gray_frame(0), format="rgb24")
        output.mux(cover.encode(picture.reformat(format="yuvj420p")))
        output.mux(cover.encode(None))
    return path


def test_a_server_that_fails_is_no_videos_fault(monkeypatch):
    """Neither when it is asked first nor in the middle: a job must end, not skip its videos."""

    def refused(_):
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(video.files, "open_read", refused)
    with pytest.raises(StorageError, match=r"cannot open s3://b/x\.mp4: connection refused"):
        read_video("s3://b/x.mp4")

    class Fails(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > len(data) // 2:
                raise ConnectionResetError("the server hung up")
            return super().read(size)

    data = video_bytes(noise_images(40, 640, 480), options={"crf": "10"})
    monkeypatch.setattr(video.files, "open_read", lambda _: Fails(data))
    with pytest.raises(StorageError, match=r"cannot read s3://b/long\.mp4: the server hung up"):
        read_video("s3://b/long.mp4")


def test_one_clear_error_each(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    text = tmp_path / "notes.txt"
    text.write_text("not a video, but a text\n" * 50)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video_bytes(25)[:600])  # the index is at the end
    for source, words in [
        (empty, r"empty\.mp4 is empty \(0 bytes\); "),
        (b"", r"<0 bytes> is empty"),
        (text, r"cannot read .*notes\.txt as a video: .*not a video"),
        (cut, r"cannot read .*cut\.mp4 as a video: .*cut short"),
        (tmp_path, r"is a folder; give a video file"),
        (tmp_path / "none.mp4", r"there is no file .*none\.mp4"),
        ("memory://none.mp4", r"there is no file memory://none\.mp4"),
        ("nonsense://x.mp4", r"cannot open nonsense://x\.mp4: "),
        (write_audio(tmp_path / "a.m4a"), r"a\.m4a has no video stream \(only: audio\)"),
        (picture_with_cover(tmp_path / "c.mp4"), r"no video stream \(only a cover picture\)"),
        (io.StringIO("text"), r"cannot read <StringIO>: .*binary mode"),
    ]:
        with pytest.raises(VideoError, match=words) as caught:
            read_video(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="not 5"):
        read_video(5)


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.mpd", "list.sdp", "list.mp4"])
def test_a_playlist_opens_nothing(tmp_path, name):
    target = write_video(tmp_path / "secret.ts", 25)
    for address in (target.name, str(target), f"file:{target}"):
        texts = {
            "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n"
            f"{address}\n#EXT-X-ENDLIST\n",
            "list.ffconcat": f"ffconcat version 1.0\nfile '{address}'\n",
            "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
            'type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet '
            f'mimeType="video/mp2t"><Representation id="1"><BaseURL>{address}</BaseURL>'
            "</Representation></AdaptationSet></Period></MPD>",
            "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            "m=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        }
        texts["list.mp4"] = texts["list.ffconcat"]
        path = tmp_path / name
        path.write_text(texts[name])
        for source in (path, path.read_bytes()):
            with pytest.raises(VideoError):
                read_video(source)


def huge_png(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(100_000, 100_000), (30_000, 30_000), (20_000, 10)])
def test_absurd_sizes_are_refused(size):
    with pytest.raises(VideoError):
        read_video(huge_png(*size))


def test_absurd_shapes_are_refused():
    with pytest.raises(VideoError, match=r"2048x16; with a short side of 256"):
        read_video(video_bytes([gray_frame(0, 2048, 16)]))


def test_errors_of_the_file_are_not_its_end():
    class Failing(io.BytesIO):
        error = OSError(errno.EIO, "the disk is gone")

        def read(self, size=-1):
            if self.tell() > 200_000:
                raise self.error
            return super().read(size)

    data = video_bytes(noise_images(30, 320, 240), container="matroska", codec="ffv1")
    assert len(data) > 1_000_000
    with pytest.raises(VideoError, match="the disk is gone"):
        read_video(Failing(data))
    Failing.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        read_video(Failing(data))


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO])
def test_interrupts_are_never_lost(wrap):
    data = video_bytes(noise_images(300, 320, 240), options={"preset": "ultrafast"})
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for trial in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.002 * trial)
            with pytest.raises(KeyboardInterrupt):
                for _ in range(20):
                    read_video(wrap(data))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts", "flv", "gif"])
def test_no_damage_raises_anything_else(container):
    if container == "gif":
        data = video_bytes(12, container="gif", codec="gif", pixel_format="rgb8")
    else:
        data = video_bytes(noise_images(12, 32, 32), container=container, gop=4)
    rng = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    for trial in range(120):
        broken = bytearray(data)
        for _ in range(int(rng.choice([1, 3, 30]))):
            broken[rng.integers(len(data))] = rng.integers(256)
        if trial % 4 == 0:
            broken = broken[: rng.integers(1, len(data))]
        start = float(rng.choice([0, 0.2]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DamagedVideoWarning)
                frames = read_video(
                    bytes(broken), start_seconds=start, end_seconds=start + 2, short_side=16
                )
            assert frames.dtype == np.uint8
            assert 1 <= len(frames) <= 50
            outcomes["read"] += 1
        except VideoError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


# Memory

MEASURE = """
import resource, sys
from i3d.video import VideoReader
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with VideoReader(sys.argv[1], end_seconds=5) as reader:
    sum(1 for _ in reader)
before = peak()
start, end = float(sys.argv[2]), float(sys.argv[3])
with VideoReader(sys.argv[1], start_seconds=start, end_seconds=end or None) as reader:
    frames = sum(1 for _ in reader)
print(frames, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long.mp4", "long.ts"])
def test_memory_does_not_grow_with_the_video(tmp_path, name):
    path = write_video(
        tmp_path / name, (gray_frame(i) for i in range(10 * 60 * 25)),
        options={"preset": "ultrafast"},
    )  # fmt: skip
    for start, end, count in [(0, 0, 15000), (590, 600, 250)]:
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), str(start), str(end)],
            capture_output=True,
            text=True,
            check=True,
        )
        frames, grown = result.stdout.split()
        assert int(frames) == count
        assert float(grown) < 20  # MiB; the frames are 3900 MiB


def test_read_video_needs_its_result_and_little_more(tmp_path):
    path = write_video(tmp_path / "v.mp4", 1500, options={"preset": "ultrafast"})
    script = MEASURE.replace(
        "with VideoReader(sys.argv[1], start", "from i3d.video import read_video\n"
        "x = read_video(sys.argv[1]); print(x.nbytes >> 20, peak() - before); sys.exit()\n"
        "with VideoReader(sys.argv[1], start",
    )  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", script, str(path), "0", "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown = (float(word) for word in result.stdout.split())
    assert size > 350
    assert grown < 1.3 * size


def test_levels_are_told_apart():
    assert which([gray_frame(i) for i in range(20)]) == [i % LEVELS for i in range(20)]
    assert level(0) == level(LEVELS)
