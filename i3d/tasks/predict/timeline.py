"""A picture of what happens when: class probabilities over time, with frames under the axis."""

from pathlib import Path
from typing import Any

import numpy as np

from i3d import files
from i3d.metrics import probabilities
from i3d.report.plot import draw_plot, style_axes
from i3d.tasks.predict.result import Prediction, top_classes

MAX_CURVES = 6
MAX_THUMBNAILS = 10
AXES_WIDTH_POINTS = 600.0  # of the 11 inches, beside the legend


def plot_timeline(prediction: Prediction, output: files.Location) -> None:
    """Draw a prediction with windows to an image file (``.png``, ``.pdf``, ``.svg``), atomically.

    Raises:
        UsageError: matplotlib is not installed, or cannot write that suffix.
    """
    windows = prediction.windows
    shares = probabilities(np.stack([w.logits for w in windows]))  # (windows, classes)
    edges = [*(w.start_seconds for w in windows), windows[-1].end_seconds]
    middles = [(w.start_seconds + w.end_seconds) / 2 for w in windows]
    with draw_plot(output, inches=(11, 5.4)) as figure:
        curves, strip = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        for score in top_classes(shares.max(0), prediction.classes, top_k=MAX_CURVES):
            values = shares[:, score.index]
            curves.plot(middles, values, marker="o", markersize=3, label=score.name)
        top = min(1.0, 1.1 * shares.max())
        curves.set(ylabel="probability", ylim=(0, top), title=Path(prediction.video).name)
        style_axes(curves)
        curves.tick_params(labelbottom=True)
        curves.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

        _draw_frames(
            strip, prediction, middles, slot_seconds=(edges[-1] - edges[0]) / MAX_THUMBNAILS
        )
        strip.set(xlim=(edges[0], edges[-1]), ylim=(0, 1), xlabel="seconds", yticks=[])
        strip.spines[["top", "right", "left"]].set_visible(False)


def _draw_frames(
    strip: Any, prediction: Prediction, middles: list[float], *, slot_seconds: float
) -> None:
    """Draw frames that share the time axis, each centred under the middle of its window."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    slot_points = AXES_WIDTH_POINTS / MAX_THUMBNAILS
    free_from = -np.inf
    for window, middle in zip(prediction.windows, middles, strict=True):
        if middle < free_from:
            continue
        free_from = middle + slot_seconds
        zoom = 0.95 * slot_points / window.frame.shape[1]
        picture = OffsetImage(window.frame, zoom=zoom, interpolation="antialiased")
        box = AnnotationBbox(
            picture, (middle, 0.5), xycoords=("data", "axes fraction"), frameon=False, pad=0
        )
        strip.add_artist(box)
