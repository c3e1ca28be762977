"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from i3d.presets import KINETICS_I3D, Preset
from i3d.settings import option
from i3d.tasks.options import ComputeOptions, StrictOptions

if TYPE_CHECKING:
    from i3d.clips import Views


@dataclass(frozen=True)
class EvaluateOptions(ComputeOptions):
    """What the networks see of each video, and how they compute."""

    frames: int | None = option(
        None, "Frames of each clip.", default_is="250; 251 of the Chainer program's folders"
    )
    clips: int = option(1, "Clips of each video, spaced evenly.", heading="Views")
    crops: int = option(1, "Crops of each clip: 1 (centre) or 3.", heading="Views")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.find_views(KINETICS_I3D)

    def find_views(self, preset: Preset) -> Views:
        """The parts of a video whose logits are averaged; the preset's frames unless others."""
        from i3d.clips import Views  # numpy

        frames = preset.clip_frames if self.frames is None else self.frames
        return Views(frames, self.clips, self.crops)


@dataclass(frozen=True)
class EvaluateCheckpoints:
    """The networks of the command line."""

    rgb_checkpoint: str | None = option(None, "RGB network.", metavar="NAME|PATH")
    flow_checkpoint: str | None = option(None, "Flow network.", metavar="NAME|PATH")


@dataclass(frozen=True)
class EvaluateOutputs(StrictOptions):
    """What is written, and where."""

    output: str | None = option(None, "Write the result for machines.", metavar="JSON")
    report: str | None = option(None, "Write the result as a page.", metavar="HTML")
    predictions: str | None = option(
        None, "Write every video's logits, and resume from them.", metavar="PARQUET|CSV"
    )
    resume: bool | None = option(
        None,
        "Go on with an interrupted run's --predictions, or refuse to.",
        flag="--resume/--no-resume",
        default_is="go on if there is one",
    )
    fuse: bool = option(
        False, "Join streams: the arguments are predictions files.", heading="Predictions"
    )
