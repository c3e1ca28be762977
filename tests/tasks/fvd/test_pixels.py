"""First resizes against Pillow and PyTorch, on sizes that are odd in every way."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from i3d.tasks.fvd.pixels import prepare_frames, resize_first
from i3d.tasks.fvd.protocols import change_protocol

SHAPES = [(37, 53), (53, 37), (48, 48), (240, 320), (33, 200), (20, 28), (64, 65)]


def noise(height, width, count=2):
    return np.random.default_rng(height * width).integers(
        0, 256, (count, height, width, 3), dtype=np.uint8
    )


def pillow(picture, width, height):
    """Its Lanczos, rows first, as all of its versions up to 12 have it.

    13.0 begins with the columns for some sizes, which moves values by 1: so one axis at a time.
    """
    lanczos = Image.Resampling.LANCZOS
    return picture.resize((width, picture.height), lanczos).resize((width, height), lanczos)


def first(frames, **changes):
    protocol = change_protocol("google-2018", {"filter": "lanczos", **changes})
    return resize_first(torch.from_numpy(frames), protocol).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [16, 32, 64, 71])
def test_lanczos_is_pillows_to_the_bit(shape, size):
    """Squashed, up and down; edges, where fewer pixels are under the filter, included."""
    frames = noise(*shape)
    theirs = [pillow(Image.fromarray(f), size, size) for f in frames]
    np.testing.assert_array_equal(first(frames, resolution=size, crop="squash"), theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_square(shape):
    frames = noise(*shape)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    box = left, top, left + side, top + side
    theirs = [pillow(Image.fromarray(f).crop(box), 32, 32) for f in frames]
    np.testing.assert_array_equal(first(frames, resolution=32, crop="square"), theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_short_side_as_torchvision_has_it(shape):
    """Its documented sizes: the long side cut to an integer, the crop rounded to the even one."""
    frames = noise(*shape)
    height, width = shape
    if height <= width:
        tall, wide = 32, int(32 * width / height)
    else:
        tall, wide = int(32 * height / width), 32
    top, left = round((tall - 32) / 2.0), round((wide - 32) / 2.0)
    box = left, top, left + 32, top + 32
    theirs = [pillow(Image.fromarray(f), wide, tall).crop(box) for f in frames]
    np.testing.assert_array_equal(first(frames, resolution=32), theirs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["antialias", "bilinear", "area"])
def test_pytorchs_filters(shape, name):
    """In float64, before 8 bits: the short side up, the centre's offset down."""
    frames = noise(*shape)
    scale = 32 / min(shape)
    size = [32 if side == min(shape) else math.ceil(side * scale) for side in shape]
    how = {"antialias": {"antialias": True}, "bilinear": {}, "area": {}}[name]
    mode = {"mode": "area"} if name == "area" else {"mode": "bilinear", "align_corners": False}
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
    whole = F.interpolate(planes, size, **mode, **how).permute(0, 2, 3, 1).numpy()
    top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
    theirs = whole[:, top : top + 32, left : left + 32]
    ours = first(frames, resolution=32, filter=name)
    # of 255; measured: 4.4e-3, the rounding of positions in float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02)


def test_what_has_the_size_already_stays():
    frames = noise(32, 32)
    for name in ("lanczos", "antialias", "bilinear", "area"):
        ours = first(frames, resolution=32, filter=name)
        np.testing.assert_array_equal(ours, frames)


@pytest.mark.parametrize(
    ("values", "levels"),
    [("float", [0.4, 0.5, 1.5, 254.7]), ("round", [0, 1, 2, 255]), ("truncate", [0, 0, 1, 254])],
)
def test_fractions_of_a_level(values, levels):
    """Halves are rounded up, as by a generator's ``(x * 127.5 + 128)`` cut to 8 bits."""
    given = torch.tensor([0.4, 0.5, 1.5, 254.7]).view(1, 1, 4, 1).expand(1, 4, 4, 3)
    protocol = change_protocol("google-2018", {"values": values, "size": 32})
    ours = prepare_frames(given, protocol)[0, 0, ::8, 0]
    np.testing.assert_allclose(ours, levels, atol=1e-5)


def test_frames_are_the_same_alone_and_in_a_batch():
    frames = torch.from_numpy(noise(53, 37, count=5))
    for name in ("lanczos", "antialias", "bilinear", "area"):
        protocol = change_protocol("stylegan-v", {"resolution": 24, "filter": name})
        whole = prepare_frames(frames, protocol)
        alone = torch.cat([prepare_frames(f[None], protocol) for f in frames])
        assert torch.equal(whole, alone)
