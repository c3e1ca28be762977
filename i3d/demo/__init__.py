"""The embedded example: the whole path from a video file to a prediction, without a network.

It renders a short video, makes two small checkpoints, converts one of them to the Chainer program's
``.npz`` and back, and predicts with both streams. The checkpoints are untrained: the run shows that
every step works on this machine, not what is in the video.
"""

import os
from fractions import Fraction
from pathlib import Path

import av
import click
import numpy as np
import torch

from i3d.models.i3d import I3D, STREAM_CHANNELS
from i3d.models.weights import save
from i3d.tasks.convert import convert
from i3d.tasks.plot import plot_timeline
from i3d.tasks.predict import PLOT_WINDOW_SECONDS, Prediction, Predictor

FPS = 25
SECONDS = 6
HEIGHT, WIDTH = 256, 340
NETWORK_WIDTH = 0.25  # of the paper's channels: a sixteenth of its work


def run(output: str | os.PathLike[str]) -> Prediction:
    """Run the example and keep everything it makes in a folder.

    Args:
        output: folder for ``ball.mp4``, the checkpoints and ``timeline.png``; made if need be.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    video = folder / "ball.mp4"
    render_video(video)
    click.echo(f"{video}: rendered, {SECONDS} s at {FPS} frames a second")

    torch.manual_seed(0)
    checkpoints = []
    for stream in STREAM_CHANNELS:
        path = folder / f"{stream}.safetensors"
        save(I3D(stream, classes="kinetics400", width=NETWORK_WIDTH), path)
        checkpoints.append(path)
    click.echo(f"{', '.join(map(str, checkpoints))}: initialised, not trained")
    npz = folder / "rgb.npz"
    click.echo(str(convert(checkpoints[0], npz)))

    # The same network twice: from our file and from the Chainer program's.
    direct = Predictor(checkpoints[:1]).predict(video)
    converted = Predictor([npz]).predict(video)
    difference = max(
        abs(a.logit - b.logit)
        for a, b in zip(direct.predictions, converted.predictions, strict=True)
    )
    click.echo(f"largest difference of the logits after conversion: {difference:g}")

    prediction = Predictor(checkpoints).predict(video, every_seconds=PLOT_WINDOW_SECONDS)
    click.echo(str(prediction))
    plot = folder / "timeline.png"
    plot_timeline(prediction, plot)
    click.echo(f"{plot}: drawn")
    click.echo(
        "The networks are untrained, so the classes mean nothing; with the released weights:\n"
        f"  i3d predict {video}"
    )
    return prediction


def render_video(target: Path) -> None:
    """Write a video of a ball that crosses a textured wall, h264 in mp4."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(60, 160, (HEIGHT // 8 + 1, WIDTH // 8 + 1, 3))
    wall = coarse.repeat(8, 0).repeat(8, 1)[:HEIGHT, :WIDTH]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(target), "w") as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for i in range(SECONDS * FPS):
            phase = i / (SECONDS * FPS)
            center_x = WIDTH * (0.1 + 0.8 * phase)
            center_y = HEIGHT * (0.75 - 0.5 * abs(np.sin(3 * np.pi * phase)))
            distance = np.hypot(x - center_x, y - center_y)
            stripes = 128 + 100 * np.sign(np.sin((x - center_x) / 6 + 8 * phase))
            ball = np.stack([0 * stripes + 230, stripes, 0 * stripes + 40], -1)
            image = np.where(distance[..., None] < 32, ball, wall).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
