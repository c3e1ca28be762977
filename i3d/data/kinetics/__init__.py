"""Datasets of videos as they lie on disk -> videos with their labels."""

from i3d.data.kinetics.dataset import VIDEO_SUFFIXES, Dataset, Layout, Video
from i3d.data.kinetics.read import read_dataset

__all__ = [
    "Dataset",
    "Layout",
    "VIDEO_SUFFIXES",
    "Video",
    "read_dataset",
]
