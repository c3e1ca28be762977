"""Small videos for the tests of predictions."""

import cv2
import pytest
from support.videos import noise_images, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 frames of moving noise at 25 fps, 340x256: no resampling, no resizing."""
    path = tmp_path_factory.mktemp("videos") / "noise.mp4"
    images = noise_images(40, width=340, height=256)
    write_video(path, [cv2.GaussianBlur(image, (0, 0), 3) for image in images])
    return str(path)


@pytest.fixture(scope="module")
def short_video(tmp_path_factory):
    """12 frames of it: OpenCV takes a second or two for the flow of each pair."""
    path = tmp_path_factory.mktemp("videos") / "short.mp4"
    images = noise_images(12, width=256, height=256)
    write_video(path, [cv2.GaussianBlur(image, (0, 0), 3) for image in images])
    return str(path)
