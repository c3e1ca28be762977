"""The settings of a prediction."""

from dataclasses import dataclass
from typing import Literal

from i3d.settings import option
from i3d.tasks.options import PrintOptions

DEFAULT_CHECKPOINTS = ("rgb_imagenet_kinetics400",)


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
        "Look along the whole video, one prediction per window of so many seconds. Default: the "
        "first 10 s.",
        flag="--every",
        metavar="SECONDS",
    )
    plot: str | None = option(
        None,
        "Draw the probabilities over time (of one video; with --every, default 2.56 s).",
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
