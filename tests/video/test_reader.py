"""The reader as its users see it: real clips, arguments, messages, attributes, memory."""

import io
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
from support.paths import ROOT
from support.videos import (
    LEVELS,
    decode_all,
    gray_frame,
    level,
    noise_images,
    reference_indices,
    video_bytes,
    which,
    write_audio,
    write_video,
)

from i3d.errors import UsageError, VideoError
from i3d.video import VideoInfo, VideoReader, probe_video, read_video

CLIPS = ROOT.parent / "shared" / "clips"


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no clips in {CLIPS}")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("arm_wrestling_340x256_28fps.mp4", 250),
        ("mpeg4_320x240_25fps.avi", 164),
        ("v_GGSY1Qvo990_320x240_19.62fps.mp4", 452),
    ],
)
def test_real_clips(name, count):
    frames, stamps, duration, time_base = decode_all(CLIPS / name)
    if name.endswith(".avi"):  # stores no presentation times; it is 25 fps, so one to one
        shown = list(range(len(frames)))
    else:
        shown = reference_indices(stamps, duration, time_base)
    output = read_video(CLIPS / name)
    assert output.shape[0] == count == len(shown)
    height, width = output.shape[1:3]
    for k in range(0, count, 7):
        rgb = frames[shown[k]].to_ndarray(format="rgb24")
        if rgb.shape[:2] != (height, width):
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(output[k], rgb)


@pytest.mark.parametrize("rate", [7, 25, 60])
def test_every_frame_as_it_is(tmp_path, rate):
    """Neither sampled nor resized: PyAV's frames, one to one, whatever the rate and the stamps."""
    path = tmp_path / "v.mp4"
    write_video(path, noise_images(11), rate=rate, pts=[i + i // 4 for i in range(11)])
    theirs = [frame.to_ndarray(format="rgb24") for frame in decode_all(path)[0]]
    ours = read_video(path, fps=None, short_side=None)
    np.testing.assert_array_equal(ours, theirs)
    halved = read_video(path, fps=None, short_side=32)
    assert halved.shape == (11, 32, 48, 3)


def test_a_start_past_the_end(tmp_path):
    path = write_video(tmp_path / "v.mp4", 25)
    with pytest.raises(VideoError, match=r"start_seconds=1 is past the end of .*v\.mp4.*1 s"):
        read_video(path, start_seconds=1)
    assert len(read_video(path, start_seconds=0.96, end_seconds=7)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"start_seconds": -1},
        {"start_seconds": float("nan")},
        {"start_seconds": "x"},
        {"end_seconds": 0},
        {"start_seconds": 2, "end_seconds": 1},
        {"end_seconds": float("inf")},
        {"fps": 0},
        {"fps": -25},
        {"short_side": 0},
        {"fps": None, "start_seconds": 1},
        {"fps": None, "end_seconds": 1},
        {"threads": 0},
    ],
)
def test_arguments_that_make_no_sense(arguments):
    with pytest.raises(UsageError):
        VideoReader(b"not opened", **arguments)


def test_iterate_once(tmp_path):
    with VideoReader(video_bytes(3)) as reader:
        assert len(list(reader)) == 3
        with pytest.raises(UsageError, match="read already"):
            list(reader)


def test_probe(tmp_path):
    path = write_video(tmp_path / "v.mp4", 60, rate=30)
    info = probe_video(path)
    assert info == VideoInfo(
        name=str(path), container="mov,mp4,m4a,3gp,3g2,mj2", codec="h264", width=64, height=48,
        fps=30.0, frames=60, duration_seconds=2.0,
    )  # fmt: skip
    assert probe_video(video_bytes(5, container="h264")).frames is None


def test_reader_attributes():
    with VideoReader(video_bytes(60, rate=30), end_seconds=1) as reader:
        assert len(list(reader)) == 25
        assert reader.duration_seconds is None
        assert 30 <= reader.decoded_frames <= 32
    with VideoReader(video_bytes(60, rate=30)) as reader:
        assert len(list(reader)) == 50
        assert (reader.duration_seconds, reader.decoded_frames, reader.lost_frames) == (2, 60, 0)
        assert reader.damage is None


def picture_with_cover(path):
    """A song with a cover: sound, and one picture marked as attached."""
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=16000)
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
        picture = av.VideoFrame.from_ndarray(gray_frame(0), format="rgb24")
        output.mux(cover.encode(picture.reformat(format="yuvj420p")))
        output.mux(cover.encode(None))
    return path


def test_one_clear_error_each(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    text = tmp_path / "notes.txt"
    text.write_text("not a video, but a text\n" * 50)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video_bytes(25)[:600])  # the index is at the end
    for source, words in [
        (empty, r"empty\.mp4 is empty \(0 bytes\); "),
        (b"", r"<0 bytes> is empty"),
        (text, r"cannot read .*notes\.txt as a video: .*not a video"),
        (cut, r"cannot read .*cut\.mp4 as a video: .*cut short"),
        (tmp_path, r"is a folder; give a video file"),
        (tmp_path / "none.mp4", r"there is no file .*none\.mp4"),
        ("memory://none.mp4", r"there is no file memory://none\.mp4"),
        ("nonsense://x.mp4", r"cannot open nonsense://x\.mp4: "),
        (write_audio(tmp_path / "a.m4a"), r"a\.m4a has no video stream \(only: audio\)"),
        (picture_with_cover(tmp_path / "c.mp4"), r"no video stream \(only a cover picture\)"),
        (io.StringIO("text"), r"cannot read <StringIO>: .*binary mode"),
    ]:
        with pytest.raises(VideoError, match=words) as caught:
            read_video(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="not 5"):
        read_video(5)


MEASURE = """
import resource, sys
from i3d.video import VideoReader
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with VideoReader(sys.argv[1], end_seconds=5) as reader:
    sum(1 for _ in reader)
before = peak()
start, end = float(sys.argv[2]), float(sys.argv[3])
with VideoReader(sys.argv[1], start_seconds=start, end_seconds=end or None) as reader:
    frames = sum(1 for _ in reader)
print(frames, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long.mp4", "long.ts"])
def test_memory_does_not_grow_with_the_video(tmp_path, name):
    path = write_video(
        tmp_path / name, (gray_frame(i) for i in range(10 * 60 * 25)),
        options={"preset": "ultrafast"},
    )  # fmt: skip
    for start, end, count in [(0, 0, 15000), (590, 600, 250)]:
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), str(start), str(end)],
            capture_output=True,
            text=True,
            check=True,
        )
        frames, grown = result.stdout.split()
        assert int(frames) == count
        assert float(grown) < 20  # MiB; the frames are 3900 MiB


def test_read_video_needs_its_result_and_little_more(tmp_path):
    path = write_video(tmp_path / "v.mp4", 1500, options={"preset": "ultrafast"})
    script = MEASURE.replace(
        "with VideoReader(sys.argv[1], start", "from i3d.video import read_video\n"
        "x = read_video(sys.argv[1]); print(x.nbytes >> 20, peak() - before); sys.exit()\n"
        "with VideoReader(sys.argv[1], start",
    )  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", script, str(path), "0", "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown = (float(word) for word in result.stdout.split())
    assert size > 350
    assert grown < 1.3 * size


def test_levels_are_told_apart():
    assert which([gray_frame(i) for i in range(20)]) == [i % LEVELS for i in range(20)]
    assert level(0) == level(LEVELS)
