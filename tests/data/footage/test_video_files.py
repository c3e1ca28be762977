"""Folders of video files of other kinds: GIF as PIL composes it, WebM, and on several levels."""

import numpy as np
import pytest
from PIL import Image, ImageSequence
from support.footage import make_videos, write_lossless
from support.videos import decode_all, write_video

from i3d.data.footage.opening import open_footage
from i3d.errors import DatasetError

VIDEO = make_videos(1, 3, frames=12)[0]


def read(path):
    with open_footage(path) as opened:
        for i in range(len(opened.footage.keys)):
            with opened.footage.open(i) as video:
                yield np.array(list(video.read(range(video.count_frames()))))


@pytest.mark.parametrize("disposal", [1, 2])
def test_a_gif_is_what_pil_composes(tmp_path, disposal):
    """Frames of parts of the picture, with transparency: a square that moves before a ground."""
    ground = Image.fromarray(VIDEO[0]).quantize(128)
    palette = ground.getpalette()
    frames = [ground]
    for t in range(1, 8):
        part = np.full((40, 52), 255, np.uint8)  # transparent
        part[5 + t : 15 + t, 10 + 2 * t : 30 + 2 * t] = t
        image = Image.fromarray(part, "P")
        image.putpalette(palette)
        frames.append(image)
    frames[0].save(
        tmp_path / "x.gif",
        save_all=True,
        append_images=frames[1:],
        disposal=disposal,
        transparency=255,
        duration=40,
        optimize=False,
    )
    with Image.open(tmp_path / "x.gif") as gif:
        theirs = [np.array(frame.convert("RGBA")) for frame in ImageSequence.Iterator(gif)]
    (ours,) = read(tmp_path)
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        seen = its[..., 3] > 0  # what shows through has no colour of its own
        np.testing.assert_array_equal(mine[seen], its[..., :3][seen])
    assert disposal == 2 or all((its[..., 3] > 0).all() for its in theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.webm", {"codec": "libvpx-vp9", "options": {"crf": "20", "b": "0"}}),
        ("x.y4m", {"codec": "rawvideo", "pixel_format": "yuv444p"}),
        ("x.mkv", {"codec": "ffv1", "pixel_format": "bgr0"}),
    ],
)
def test_other_kinds_of_video(tmp_path, name, options):
    """Every frame that FFmpeg decodes; without loss, the very pixels."""
    write_video(tmp_path / name, VIDEO, **options)
    (ours,) = read(tmp_path)
    frames = decode_all(tmp_path / name)[0]
    assert len(ours) == len(frames) == 12
    if name == "x.mkv":
        np.testing.assert_array_equal(ours, VIDEO)
    else:
        assert np.abs(ours.astype(int) - VIDEO).mean() < 8  # measured 3.6 and 0.8: coded as YUV


def test_videos_on_every_level(tmp_path):
    for i, name in enumerate(["top.mp4", "class/a.mp4", "class/deeper/b.1.mp4"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_lossless(tmp_path / name, VIDEO[: 5 + i])
    with open_footage(tmp_path) as opened:
        assert opened.footage.keys == ("class/a", "class/deeper/b%2E1", "top")
    assert [len(frames) for frames in read(tmp_path)] == [6, 7, 5]


def test_nothing_there(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "readme.txt").write_text("nothing")
    with pytest.raises(DatasetError, match="no videos in it"):
        open_footage(tmp_path / "x").__enter__()
    for name in ("no", "no.zip", "no.tar.gz", "no.pt", "no.npy"):
        with pytest.raises(DatasetError, match="no such file"):
            open_footage(tmp_path / name).__enter__()
