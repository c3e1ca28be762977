"""How frames and flow are coded, and which pictures are refused."""

import cv2
import numpy as np
import pytest
import simplejpeg
from support.shards import HEIGHT, WIDTH, video

from i3d.clips import flow_clip, quantize_flow
from i3d.data.shards.pictures import decode_flow, decode_rgb, encode_flow, encode_rgb
from i3d.errors import DatasetError


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
