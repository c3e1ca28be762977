"""Pictures to .mp4, and back by PyAV alone."""

import io

import av
import numpy as np
import pytest
from support.videos import noise_images

from i3d.errors import UsageError
from i3d.video.writer import Mp4Writer


def write(target, images, fps=25):
    height, width = images[0].shape[:2]
    with Mp4Writer(target, width=width, height=height, fps=fps) as video:
        for image in images:
            video.write(image)


@pytest.mark.parametrize("fps", [25, 30])
def test_what_is_written_is_read(tmp_path, fps):
    colors = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (90, 90, 90)]
    images = [np.full((48, 64, 3), color, np.uint8) for color in colors]
    write(tmp_path / "x.mp4", images, fps)
    with av.open(str(tmp_path / "x.mp4")) as container:
        (stream,) = container.streams
        assert (stream.average_rate, stream.codec_context.name) == (fps, "h264")
        assert stream.codec_context.pix_fmt == "yuv420p"
        frames = list(container.decode(video=0))
        assert [f.time for f in frames] == pytest.approx([i / fps for i in range(4)])
        assert frames[0].colorspace == 6  # the matrix that it was made with, for large pictures too
    for frame, color in zip(frames, colors, strict=True):
        mean = frame.to_ndarray(format="rgb24").mean((0, 1))
        np.testing.assert_allclose(mean, color, atol=4)  # measured 2


def test_a_named_file_begins_with_its_table(tmp_path):
    images = noise_images(5)
    write(tmp_path / "x.mp4", images)
    data = (tmp_path / "x.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    memory = io.BytesIO()
    write(memory, images)
    assert memory.getvalue().index(b"mdat") < memory.getvalue().index(b"moov")
    write(tmp_path / "again.mp4", images)
    assert (tmp_path / "again.mp4").read_bytes() == data


def test_odd_sizes_and_errors_in_the_middle(tmp_path):
    with pytest.raises(UsageError, match=r"65x48 pixels: H\.264 takes even sizes"):
        Mp4Writer(tmp_path / "x.mp4", width=65, height=48, fps=25)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), Mp4Writer(tmp_path / "x.mp4", width=64, height=48, fps=25) as v:
        v.write(np.zeros((48, 64, 3), np.uint8))
        raise KeyError
