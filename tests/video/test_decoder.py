"""Seeking gives the frames of decoding from the start, and damage loses only itself."""

import warnings

import numpy as np
import pytest
from support.videos import LEVELS, noise_images, video_bytes, which, write_video

from i3d.errors import VideoError
from i3d.video import DamagedVideoWarning, VideoReader, read_video

LONG_GOPS = {
    "b-frames.mp4": {"gop": 100, "options": {"bf": "3", "sc_threshold": "0"}},
    "b-frames.mkv": {"gop": 100, "options": {"bf": "3", "sc_threshold": "0"}},
    "open-gop.mp4": {"gop": 30, "options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "open-gop.mkv": {"gop": 30, "options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "intra-refresh.mp4": {"gop": 30, "options": {"x264-params": "intra-refresh=1:scenecut=0"}},
    "hevc.mp4": {
        "codec": "libx265",
        "gop": 30,
        "options": {"x265-params": "log-level=none:open-gop=1:keyint=30:scenecut=0"},
    },
    "mpeg4.mp4": {"codec": "mpeg4", "gop": 24, "options": {"bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 24, "options": {"bf": "2"}},
    "mpeg4-p.avi": {"codec": "mpeg4", "gop": 24},
    "h264.ts": {"gop": 30},
    "h264.flv": {"gop": 30},
    "h264.h264": {"gop": 30},
    "fragmented.mp4": {"gop": 30, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 40, "options": {"deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "gop": 40, "options": {"auto-alt-ref": "1",
                                                           "lag-in-frames": "16"}},
    "v.gif": {"codec": "gif", "pixel_format": "rgb8"},
}  # fmt: skip


@pytest.mark.parametrize("name", LONG_GOPS)
def test_a_window_is_a_part_of_the_whole(tmp_path, name):
    options = LONG_GOPS[name] | ({} if name == "v.gif" else {"rate": 30})
    path = write_video(tmp_path / name, noise_images(330), **options)
    whole = read_video(path, short_side=64)
    seconds = len(whole) // 25
    assert seconds in (11, 13)  # 330 frames at 30 fps, or at the 25 fps of the GIF
    for start, end in [(0, 1), (0.04, 1), (1, 1.04), (3.32, 5), (3.36, 4), (4, 7), (6.68, 9.2),
                       (10.6, 30), (10.96, None), (9.96, None), (2, None)]:  # fmt: skip
        part = read_video(path, short_side=64, start_seconds=start, end_seconds=end)
        stop = None if end is None else round(25 * end)
        np.testing.assert_array_equal(part, whole[round(25 * start) : stop], f"{start} {end}")


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "vp9.webm"])
def test_a_window_is_found_by_seeking(tmp_path, name):
    path = write_video(tmp_path / name, 1000, **LONG_GOPS[name])
    with VideoReader(path, start_seconds=33, end_seconds=34) as reader:
        assert which(list(reader)) == [i % LEVELS for i in range(33 * 25, 34 * 25)]
        assert reader.decoded_frames < 200
        assert reader.lost_frames == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_frames(threads):
    data = video_bytes(noise_images(40), options={"bf": "2"})
    np.testing.assert_array_equal(read_video(data, threads=threads), read_video(data))


def damage(data, begin, end, seed=0):
    """Overwrite a part of a file, given as fractions of its length."""
    begin, end = int(len(data) * begin), int(len(data) * end)
    return data[:begin] + np.random.default_rng(seed).bytes(end - begin) + data[end:]


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_a_damaged_middle_loses_only_itself(container):
    data = video_bytes(
        noise_images(100), container=container, gop=10, options={"sc_threshold": "0"}
    )
    whole = read_video(data)
    with VideoReader(damage(data, 0.4, 0.45)) as reader:
        frames = np.stack(list(reader))
    if container != "matroska":  # its demuxer skips what it cannot parse, without a sign
        with pytest.warns(DamagedVideoWarning, match=r"^<\d+ bytes>: "):
            np.testing.assert_array_equal(read_video(damage(data, 0.4, 0.45)), frames)
    if container in ("mp4", "avi"):  # have a list of all packets
        assert reader.decoded_frames + reader.lost_frames == 100
    assert abs(len(frames) - 100) <= 10  # AVI has no time stamps to tell what is missing
    np.testing.assert_array_equal(frames[:25], whole[:25])
    np.testing.assert_array_equal(frames[-35:], whole[-35:])


def test_lost_frames_are_counted():
    sizes = []
    data = video_bytes(
        noise_images(50), codec="mjpeg", pixel_format="yuvj420p", container="mov",
        edit_packet=lambda packet, i: sizes.append(packet.size),
    )  # fmt: skip
    begin = data.find(b"mdat") + 4 + sum(sizes[:20])
    assert data[begin : begin + 2] == b"\xff\xd8"  # the 20th JPEG
    length = sum(sizes[20:23])
    broken = data[:begin] + bytes(length) + data[begin + length :]
    with pytest.warns(DamagedVideoWarning, match="3 of 50 frames could not be decoded"):
        frames = read_video(broken)
    whole = read_video(data)
    whole[20:23] = whole[19]  # the frame before them stays on show
    np.testing.assert_array_equal(frames, whole)
    with VideoReader(broken, end_seconds=0.84) as reader:
        assert len(list(reader)) == 21
        assert reader.lost_frames in (1, 2, 3)  # those read by then


def test_a_file_that_is_cut_short(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, noise_images(100), gop=10, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    with VideoReader(data[: len(data) // 2]) as reader:
        frames = list(reader)
    assert 40 <= len(frames) <= 60
    assert reader.decoded_frames + reader.lost_frames == 100
    np.testing.assert_array_equal(frames[:40], read_video(data)[:40])
    with VideoReader(data[: len(data) // 2], end_seconds=1) as reader:
        assert len(list(reader)) == 25
    assert reader.lost_frames == 0


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_file_that_is_cut_short(codec):
    """The index, at its end, is gone, and FFmpeg reports nothing; the header has the number."""
    data = video_bytes(noise_images(100), container="avi", codec=codec)
    with VideoReader(data[: len(data) // 2]) as reader:
        frames = len(list(reader))
    assert 20 <= frames <= 60
    assert reader.decoded_frames + reader.lost_frames == 100
    with VideoReader(data[: len(data) // 2], start_seconds=0.5) as reader:
        assert abs(len(list(reader)) - (frames - 12.5)) < 1
    assert reader.damage is not None
    with VideoReader(data) as reader:
        assert len(list(reader)) == 100
    assert reader.damage is None


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.mpd", "list.sdp", "list.mp4"])
def test_a_playlist_opens_nothing(tmp_path, name):
    target = write_video(tmp_path / "secret.ts", 25)
    for address in (target.name, str(target), f"file:{target}"):
        texts = {
            "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n"
            f"{address}\n#EXT-X-ENDLIST\n",
            "list.ffconcat": f"ffconcat version 1.0\nfile '{address}'\n",
            "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
            'type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet '
            f'mimeType="video/mp2t"><Representation id="1"><BaseURL>{address}</BaseURL>'
            "</Representation></AdaptationSet></Period></MPD>",
            "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            "m=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        }
        texts["list.mp4"] = texts["list.ffconcat"]
        path = tmp_path / name
        path.write_text(texts[name])
        for source in (path, path.read_bytes()):
            with pytest.raises(VideoError):
                read_video(source)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts", "flv", "gif"])
def test_no_damage_raises_anything_else(container):
    if container == "gif":
        data = video_bytes(12, container="gif", codec="gif", pixel_format="rgb8")
    else:
        data = video_bytes(noise_images(12, 32, 32), container=container, gop=4)
    rng = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    for trial in range(120):
        broken = bytearray(data)
        for _ in range(int(rng.choice([1, 3, 30]))):
            broken[rng.integers(len(data))] = rng.integers(256)
        if trial % 4 == 0:
            broken = broken[: rng.integers(1, len(data))]
        start = float(rng.choice([0, 0.2]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DamagedVideoWarning)
                frames = read_video(
                    bytes(broken), start_seconds=start, end_seconds=start + 2, short_side=16
                )
            assert frames.dtype == np.uint8
            assert 1 <= len(frames) <= 50
            outcomes["read"] += 1
        except VideoError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0
