"""Named preprocessing settings: how a video becomes the network's input.

A preset's name is stored in every checkpoint, shard, report and feature file, so that two numbers
can be compared by their names. Settings never vary silently: another value is another preset.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from i3d.errors import UsageError

Stream = Literal["rgb", "flow"]
STREAMS: tuple[Stream, ...] = ("rgb", "flow")  # the order of everything that holds both
STREAM_CHANNELS: dict[Stream, int] = {"rgb": 3, "flow": 2}  # flow: x then y

# The head averages pairs of time steps, so its input, Mixed_5c, needs ceil(T / 8) >= 2.
MIN_FRAMES = 9


class Scale(NamedTuple):
    """A line from 8-bit values to numbers around 0: ``(x - zero) / steps``.

    Attributes:
        zero: the value of 0; a multiple of 1/2.
        steps: how many values lie from 0 to 1; a multiple of 1/2.
    """

    zero: float
    steps: float


@dataclass(frozen=True)
class Preset:
    """How frames are sampled, resized, cropped and scaled.

    Attributes:
        name: what is stored beside the results.
        fps: frames a second after resampling.
        short_side: pixels of the shorter side after resizing, before the crop.
        crop: pixels of the square crop that the network sees.
        clip_frames: frames of the test clip; a shorter video is looped to this length.
        flow_bound_pixels: flow is clipped to ±this many pixels a frame, then scaled to ±1.
        rgb_scale: stored frames -> the network's input.
        flow_scale: stored flow -> the network's input.
        flow_storage: stored flow -> flow, as a part of the bound.
        rounds_corner: a centre crop's offset that falls between two pixels is rounded, halves to
            even, instead of down.
    """

    name: str
    fps: int
    short_side: int
    crop: int
    clip_frames: int
    flow_bound_pixels: float
    rgb_scale: Scale
    flow_scale: Scale
    flow_storage: Scale
    rounds_corner: bool = False

    def scale(self, stream: Stream) -> Scale:
        """Stored pictures of a stream -> the network's input."""
        return self.rgb_scale if stream == "rgb" else self.flow_scale

    def find_corner(self, height: int, width: int) -> tuple[int, int]:
        """Top and left of the centre crop, pixels; negative where the picture is smaller."""
        spare = height - self.crop, width - self.crop
        if self.rounds_corner:
            return round(spare[0] / 2), round(spare[1] / 2)
        return spare[0] // 2, spare[1] // 2

    @property
    def of_videos(self) -> "Preset":
        """How video files are read for networks of this preset: as the original's, at its size."""
        return preset_with_short_side(self.short_side)

    def fits(self, other: "Preset") -> bool:
        """Whether a network made for one sees pictures of the other: their sizes are the same."""
        sizes = self.fps, self.short_side, self.crop
        return sizes == (other.fps, other.short_side, other.crop)


# Source: the README of deepmind/kinetics-i3d (25 fps, short side 256, TV-L1 clipped to ±20,
# 224 centre crop) and "Quo Vadis" (arXiv 1705.07750), section 2.5: 250 frames at test time.
KINETICS_I3D = Preset(
    name="kinetics-i3d",
    fps=25,
    short_side=256,
    crop=224,
    clip_frames=10 * 25,  # the ten seconds of a Kinetics clip
    flow_bound_pixels=20.0,
    rgb_scale=Scale(127.5, 127.5),
    flow_scale=Scale(128, 127),
    flow_storage=Scale(128, 127),  # no motion is stored as a value of its own and read as 0
)

# The Chainer program's, whose precomputed folders are read (`i3d.data.chainer`). Frame k of n is
# frame floor(k (N - 1) / (n - 1)) of the file's N, n = 25 N / fps; flow is stored as
# round((f + 20) 255 / 40), where no motion, 127.5, becomes 128 and so 0.078 pixels; both streams
# see (q - 128) / 128; 251 frames. Source: examples/i3d of alexisVallet/chainercv (MIT), commits
# 045de2a and 78b6fee; its centre crop is chainercv.transforms.center_crop.
CHAINER_I3D = replace(
    KINETICS_I3D,
    name="chainer-i3d",
    clip_frames=251,
    rgb_scale=Scale(128, 128),
    flow_scale=Scale(128, 128),
    flow_storage=Scale(127.5, 127.5),
    rounds_corner=True,
)
# Such a folder in our format: frames chosen and scaled as they were, flow stored as ours is.
CHAINER_I3D_CONVERTED = replace(
    CHAINER_I3D, name="chainer-i3d-converted", flow_storage=KINETICS_I3D.flow_storage
)

_NAMED = {preset.name: preset for preset in (KINETICS_I3D, CHAINER_I3D, CHAINER_I3D_CONVERTED)}
_SMALLER = re.compile(rf"{KINETICS_I3D.name}-(\d{{2,4}})")


def find_preset(name: str) -> Preset:
    """The preset of that name.

    ``kinetics-i3d`` is the original's. ``kinetics-i3d-N`` has short side N and a crop that is as
    large a part of it (``kinetics-i3d-128``: 112), for networks trained on smaller pictures.
    ``chainer-i3d`` and ``chainer-i3d-converted`` are of the Chainer program's precomputed folders.

    Raises:
        UsageError: there is no such preset.
    """
    if name in _NAMED:
        return _NAMED[name]
    match = _SMALLER.fullmatch(name)
    if match is None or int(match[1]) < 16 or name == f"{KINETICS_I3D.name}-256":
        raise UsageError(
            f"preset {name!r} is not known; there are {', '.join(_NAMED)} and "
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
