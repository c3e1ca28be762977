"""Named preprocessing settings: how a video becomes the network's input.

A preset's name is stored in every checkpoint, shard, report and feature file, so that two numbers
can be compared by their names. Settings never vary silently: another value is another preset.
"""

from dataclasses import dataclass


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

PRESETS: dict[str, Preset] = {p.name: p for p in (KINETICS_I3D,)}
