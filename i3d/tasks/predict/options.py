"""The settings of a prediction."""

from dataclasses import dataclass
from typing import Literal

from i3d.settings import option
from i3d.tasks.options import PrintOptions

DEFAULT_CHECKPOINTS = ("rgb_imagenet_kinetics400",)
# 64 frames at 25 fps: the snippets that the networks were trained on (the I3D paper, section 3).
SUGGESTED_EVERY = 2.56


@dataclass(frozen=True)
class PredictOptions(PrintOptions):
    """What is looked at, by which networks, and what is shown."""

    checkpoints: tuple[str, ...] = option(
        (),
        "Network to use; repeat it to add logits.",
        flag="--checkpoint",
        metavar="NAME|PATH",
        default_is=DEFAULT_CHECKPOINTS[0],
    )
    top_k: int = option(5, "How many classes to show.")
    every_seconds: float | None = option(
        None,
        "Look along the whole video, in windows of so many seconds, and say what happens when. "
        "Default: the first 10 s alone.",
        flag="--every",
        metavar="SECONDS",
    )
    mean: bool = option(
        False, "With --every, also show the classes of the windows' mean logits.", flag="--mean"
    )
    as_csv: bool = option(False, "Print CSV, a row a segment, and nothing else.", flag="--csv")
    plot: str | None = option(
        None,
        "Draw what happens when (.png, .pdf, .svg), in one video; --every is 2.56 s if not given.",
        metavar="IMAGE",
    )
    map: str | None = option(
        None,
        "Write the video with the places that speak for its class (of one video).",
        metavar="VIDEO.mp4",
    )
    device: str = option("auto", "Where to compute.", metavar="auto|cpu|cuda")
    runtime: Literal["torch", "onnx", "openvino"] | None = option(
        None,
        "What runs the network: PyTorch, or for .onnx files ONNX Runtime or OpenVINO.",
        default_is="onnx for .onnx files, else torch",
    )

    @property
    def window_seconds(self) -> float | None:
        """From one window to the next along the video; None for the test clip alone."""
        if self.every_seconds is None and self.plot is not None:
            return SUGGESTED_EVERY
        return self.every_seconds
