"""The settings of feature extraction."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from i3d.errors import UsageError
from i3d.presets import MIN_FRAMES, Stream
from i3d.settings import option, required_option
from i3d.tasks.options import ComputeOptions, check_choice

MERGED = {".parquet": "parquet", ".h5": "hdf5", ".hdf5": "hdf5"}  # by OUTPUT's suffix
Rest = Literal["drop", "keep"]
Short = Literal["loop", "error"]


class Recipe(NamedTuple):
    """Settings that go together.

    Attributes:
        window: length, frames.
        step: frames from start to start; "" is the window.
        endpoint: features to take.
        format: container of the files; "" is by the output's name.
        streams: networks that must be there.
    """

    window: str = "64"  # the snippets that the networks were trained on
    step: str = ""
    endpoint: str = "clip"
    format: str = ""
    streams: tuple[Stream, ...] = ()


# What the programs of a field read. Sources: docs/features.md
RECIPES = {
    "": Recipe(),
    # ActionFormer's THUMOS features: 16 frames every 4, RGB beside flow, T x 2048
    "localization": Recipe("16", "4", format="npy", streams=("rgb", "flow")),
    # XDVioDet, UR-DMU: 16 frames, no overlap, T x 1024 a stream
    "anomaly": Recipe("16", "16", format="npy"),
}


@dataclass(frozen=True)
class FeatureOptions(ComputeOptions):
    """What to compute, and how; what is "" is filled in from the recipe.

    Attributes:
        recipe: ``localization``, ``anomaly``, or None.
        window: length in frames (``"64"``) or seconds (``"2.5s"``).
        step: distance from start to start, in the same units; "" is the window.
        endpoint: ``clip`` (features averaged over the window: 1024), ``steps`` (a row for every
            time step), or a layer's name, ``Logits`` and ``Predictions`` included.
        format: ``npz`` or ``npy`` in a folder; "" is by the output's suffix, else ``npz``.
        rest: ``drop`` leaves out frames after the last whole window, ``keep`` adds a window that
            ends with the video.
        short: a video shorter than a window is repeated (``loop``) or refused (``error``).
    """

    recipe: Literal["localization", "anomaly"] | None = option(
        None,
        "What these fields' programs read: .npy of 16 frames every 4, T x 2048; of 16 every 16.",
        flag="--for",
    )
    window: str = option(
        "", "Length: 64 or 2.5s.", metavar="FRAMES|SECONDSs", default_is=Recipe().window
    )
    step: str = option("", "Start to start.", metavar="FRAMES|SECONDSs", default_is="the window")
    endpoint: str = option(
        "",
        "clip: features averaged over the window; steps: a row for every time step; or a layer, "
        "Logits among them.",
        metavar="clip|steps|LAYER",
        default_is="clip",
    )
    format: Literal["", "npz", "npy", "parquet", "hdf5"] = option(
        "",
        "A file a video, or one for all where OUTPUT ends in .parquet, .h5 or .hdf5.",
        default_is="npz",
    )
    rest: Rest = option(
        "drop",
        "Frames after the last whole window: left out, or in a window that ends with the video.",
        heading="Windows",
    )
    short: Short = option(
        "loop", "A video shorter than a window: repeated, or refused.", heading="Windows"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("recipe", self.recipe or "", tuple(RECIPES))
        for name in ("window", "step", "endpoint", "format"):
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(RECIPES[self.recipe or ""], name))
        check_choice("rest", self.rest, ("drop", "keep"))
        check_choice("short", self.short, ("loop", "error"))
        check_choice("format", self.format, ("", "npz", "npy", *dict.fromkeys(MERGED.values())))
        for name in ("window", "step"):
            if getattr(self, name):
                _length(name, getattr(self, name), fps=1)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """FeatureCheckpoints that the recipe needs."""
        return RECIPES[self.recipe or ""].streams

    def window_frames(self, fps: int) -> int:
        """Frames in a window.

        Raises:
            UsageError: fewer than the network needs.
        """
        frames = round(_length("window", self.window, fps=fps))
        if frames < MIN_FRAMES:
            raise UsageError(
                f"window {self.window}: the network needs at least {MIN_FRAMES} frames"
            )
        return frames

    def step_frames(self, fps: int) -> Fraction:
        """Frames from start to start; a step in seconds may fall between two frames.

        Raises:
            UsageError: less than a frame.
        """
        step = _length("step", self.step or self.window, fps=fps)
        if step < 1:
            raise UsageError(f"step {self.step}: it must be at least one frame, 1/{fps} s")
        return step


@dataclass(frozen=True)
class FeatureCheckpoints:
    """The networks of the command line.

    Attributes:
        checkpoints: names, paths or URLs, one a stream.
    """

    checkpoints: tuple[str, ...] = required_option(
        "RGB or flow network; give it twice for both.", flag="--checkpoint", metavar="NAME|PATH"
    )


def _length(name: str, text: str, *, fps: int) -> Fraction:
    """``"64"`` or ``"2.5s"`` in frames."""
    match = re.fullmatch(r"(\d{1,7})|(\d{1,5}(?:\.\d{1,6})?) ?s", text)
    if match is None:
        raise UsageError(f"{name} {text!r}: give frames, as 64, or seconds, as 2.5s")
    return Fraction(match[1]) if match[1] else Fraction(match[2]) * fps
