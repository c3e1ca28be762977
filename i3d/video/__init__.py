"""Video files -> frames: uint8 (H, W, 3) RGB at 25 fps, short side 256."""

from i3d.video.ahead import AheadReader
from i3d.video.decoder import VideoInfo
from i3d.video.frames import FrameReader
from i3d.video.picture import MAX_PIXELS, MAX_SIDE
from i3d.video.reader import DamagedVideoWarning, VideoReader, probe_video, read_video
from i3d.video.source import Source

__all__ = [
    "AheadReader",
    "DamagedVideoWarning",
    "FrameReader",
    "MAX_PIXELS",
    "MAX_SIDE",
    "Source",
    "VideoInfo",
    "VideoReader",
    "probe_video",
    "read_video",
]
