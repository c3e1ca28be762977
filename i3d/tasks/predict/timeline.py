"""A picture of what happens when: class probabilities over time, with frames under the axis."""

import os
from pathlib import Path

import numpy as np

from i3d import files
from i3d.errors import UsageError
from i3d.tasks.predict.predictor import Prediction, top_classes

MAX_CURVES = 6
MAX_THUMBNAILS = 10
AXES_WIDTH_POINTS = 600.0  # of the 11 inches, beside the legend


def plot_timeline(prediction: Prediction, output: str | os.PathLike[str]) -> None:
    """Draw a prediction with windows to an image file (``.png``, ``.pdf``, ``.svg``), atomically.

    Raises:
        UsageError: matplotlib is not installed, or cannot write that suffix.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install 'i3d[plot]'") from None

    windows = prediction.windows
    logits = np.stack([w.logits for w in windows]).astype(np.float64)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)  # (windows, classes)
    edges = [*(w.start_seconds for w in windows), windows[-1].end_seconds]
    middles = [(w.start_seconds + w.end_seconds) / 2 for w in windows]

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    curves, strip = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    for score in top_classes(probabilities.max(0), prediction.classes, top_k=MAX_CURVES):
        values = probabilities[:, score.index]
        curves.plot(middles, values, marker="o", markersize=3, label=score.name)
    top = min(1.0, 1.1 * probabilities.max())
    curves.set(ylabel="probability", ylim=(0, top), title=Path(prediction.video).name)
    curves.grid(alpha=0.3)
    curves.spines[["top", "right"]].set_visible(False)
    curves.tick_params(labelbottom=True)
    curves.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    # Thumbnails share the time axis: each is centred under the middle of its window.
    slot_points = AXES_WIDTH_POINTS / MAX_THUMBNAILS
    slot_seconds = (edges[-1] - edges[0]) / MAX_THUMBNAILS
    free_from = -np.inf
    for window, middle in zip(windows, middles, strict=True):
        if middle < free_from:
            continue
        free_from = middle + slot_seconds
        zoom = 0.95 * slot_points / window.frame.shape[1]
        picture = OffsetImage(window.frame, zoom=zoom, interpolation="antialiased")
        box = AnnotationBbox(
            picture, (middle, 0.5), xycoords=("data", "axes fraction"), frameon=False, pad=0
        )
        strip.add_artist(box)
    strip.set(xlim=(edges[0], edges[-1]), ylim=(0, 1), xlabel="seconds", yticks=[])
    strip.spines[["top", "right", "left"]].set_visible(False)

    target = Path(output)
    supported = figure.canvas.get_supported_filetypes()
    if target.suffix.removeprefix(".") not in supported:
        raise UsageError(f"{target}: cannot draw that; the suffixes are {', '.join(supported)}")
    with files.atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=130)
