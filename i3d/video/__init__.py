"""Video files -> frames: uint8 (H, W, 3) RGB at 25 fps, short side 256."""

from i3d.video.reader import (
    MAX_PIXELS,
    MAX_SIDE,
    DamagedVideoWarning,
    Source,
    VideoReader,
    probe_video,
    read_video,
)

__all__ = [
    "DamagedVideoWarning",
    "MAX_PIXELS",
    "MAX_SIDE",
    "Source",
    "VideoReader",
    "probe_video",
    "read_video",
]
