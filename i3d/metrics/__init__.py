"""Logits and features -> the numbers that papers report."""

from i3d.metrics.classification import (
    BINS,
    Classification,
    ClassificationScores,
    Proportion,
    ReliabilityBin,
    probabilities,
    proportion,
    ranks,
)
from i3d.metrics.frechet import frechet_distance

__all__ = [
    "BINS",
    "Classification",
    "ClassificationScores",
    "Proportion",
    "ReliabilityBin",
    "frechet_distance",
    "probabilities",
    "proportion",
    "ranks",
]
