"""Named preprocessing settings: how a video becomes the network's input.

A preset's name is stored in every checkpoint, shard, report and feature file, so that two numbers
can be compared by their names. Settings never vary silently: another value is another preset.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from i3d.errors import UsageError

Stream = Literal["rgb", "flow"]
STREAMS: tuple[Stream, ...] = ("rgb", "flow")  # the order of everything that holds both
STREAM_CHANNELS: dict[Stream, int] = {"rgb": 3, "flow": 2}  # flow: x then y

# The head averages pairs of time steps, so its input, Mixed_5c, needs ceil(T / 8) >= 2.
MIN_FRAMES = 9


@dataclass(frozen=True)
class Preset:
    """How frames are sampled, resized, cropped and scaled.

    Attributes:
        name: what is stored beside the results.
        fps: frames a second after resampling by presentation time stamps.
        short_side: pixels of the shorter side after resizing, before the crop.
        crop: pixels of the square crop that the network sees.
        clip_frames: frames of the test clip; a shorter video is looped to this length.
        flow_bound_pixels: flow is clipped to ±this many pixels a frame, then scaled to ±1.
    """

    name: str
    fps: int
    short_side: int
    crop: int
    clip_frames: int
    flow_bound_pixels: float


# Source: the README of deepmind/kinetics-i3d (25 fps, short side 256, TV-L1 clipped to ±20,
# 224 centre crop) and "Quo Vadis" (arXiv 1705.07750), section 2.5: 250 frames at test time.
KINETICS_I3D = Preset(
    name="kinetics-i3d",
    fps=25,
    short_side=256,
    crop=224,
    clip_frames=10 * 25,  # the ten seconds of a Kinetics clip
    flow_bound_pixels=20.0,
)

_SMALLER = re.compile(rf"{KINETICS_I3D.name}-(\d{{2,4}})")


def find_preset(name: str) -> Preset:
    """The preset of that name.

    ``kinetics-i3d`` is the original's. ``kinetics-i3d-N`` has short side N and a crop that is as
    large a part of it (``kinetics-i3d-128``: 112), for networks trained on smaller pictures.

    Raises:
        UsageError: there is no such preset.
    """
    if name == KINETICS_I3D.name:
        return KINETICS_I3D
    match = _SMALLER.fullmatch(name)
    if match is None or int(match[1]) < 16 or name == f"{KINETICS_I3D.name}-256":
        raise UsageError(
            f"preset {name!r} is not known; there are {KINETICS_I3D.name} and "
            f"{KINETICS_I3D.name}-N, N the pixels of the short side"
        )
    return preset_with_short_side(int(match[1]))


def preset_with_short_side(short_side: int) -> Preset:
    """The original's preset at another picture size; at 256 it is the original's itself."""
    if short_side == KINETICS_I3D.short_side:
        return KINETICS_I3D
    return replace(
        KINETICS_I3D,
        name=f"{KINETICS_I3D.name}-{short_side}",
        short_side=short_side,
        crop=short_side * KINETICS_I3D.crop // KINETICS_I3D.short_side,
    )


# How precompute stores what it made of videos, unless it is told otherwise.
RGB_QUALITY = 95  # with 4:2:0: OpenCV's defaults, as in the program of the published figures
CLIPS_PER_SHARD = 128  # about 1 GB with flow: large reads, and little to repeat after a crash
