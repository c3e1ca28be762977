"""Small videos, one of them no video, and the shards of them."""

import cv2
import pytest
from support.reading import FRAMES
from support.videos import noise_images, write_video

from i3d.data.videos import VideoSet
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for i, (name, frames) in enumerate(FRAMES.items()):
        size = (48, 70) if name.endswith("tall") else (80, 56)
        images = [cv2.GaussianBlur(x, (0, 0), 2) for x in noise_images(frames, *size, i)]
        write_video(root / f"{name}.mp4", images)
    (root / "b" / "zerobytes.mp4").touch()
    return root


@pytest.fixture(scope="session")
def shards(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    settings = Settings(short_side=48, clips_per_shard=2)
    with pytest.warns(UserWarning, match="sorted list of these folders"):
        precompute(
            VideoSet(videos, classes="folders"), folder, settings=settings, work=Work(workers=2)
        )
    return folder
