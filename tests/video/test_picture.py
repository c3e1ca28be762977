"""Pictures: their colour, orientation and size, against closed forms and OpenCV."""

import struct
import zlib
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from support.videos import (
    LEVELS,
    gray_frame,
    noise_images,
    video_bytes,
    which,
    write_two_sizes,
    write_video,
)

from i3d.errors import VideoError
from i3d.video import VideoReader, read_video
from i3d.video.picture import PictureMaker


def test_only_frames_put_out_are_converted(tmp_path, monkeypatch):
    calls = []
    convert = PictureMaker._rgb
    monkeypatch.setattr(PictureMaker, "_rgb", lambda s, f: calls.append(f.pts) or convert(s, f))
    assert len(read_video(write_video(tmp_path / "fast.mp4", 60, rate=60))) == 25
    assert len(calls) == len(set(calls)) == 25
    calls.clear()
    assert len(read_video(write_video(tmp_path / "slow.mp4", 10, rate=10))) == 25
    assert len(calls) == 10
    calls.clear()
    read_video(tmp_path / "fast.mp4", start_seconds=0.5, end_seconds=0.6)
    assert len(calls) == 2


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
