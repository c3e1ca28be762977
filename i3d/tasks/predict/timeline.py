"""The file of `i3d predict --plot`: what happens when, as `i3d.report.timeline` lays it out."""

from i3d import files
from i3d.report.drawing import write_drawing
from i3d.tasks.predict.result import Prediction


def plot_timeline(prediction: Prediction, output: files.Location) -> None:
    """Draw a prediction to an image file (``.svg``, ``.png``, ``.pdf``), atomically.

    SVG needs no matplotlib; in a browser its boxes say their times and probabilities.

    Raises:
        UsageError: matplotlib is not installed, or cannot write that suffix.
    """
    write_drawing(prediction.draw_timeline(header=True), output)
