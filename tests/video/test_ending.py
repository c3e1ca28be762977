"""Files that were cut short are told from sound ones, in every container."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from support.paths import ROOT
from support.videos import noise_images, write_video

from i3d.errors import VideoError
from i3d.video import VideoReader, read_video
from i3d.video.source import SourceFile

CLIPS = ROOT.parent / "shared" / "clips"
VP8 = {"codec": "libvpx", "options": {"deadline": "realtime", "auto-alt-ref": "1",
                                      "lag-in-frames": "8"}}  # fmt: skip
CONTAINERS = {
    "mp4": {"sound": "aac"},
    "mov": {"sound": "aac"},
    "faststart.mp4": {"sound": "aac", "container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {
        "sound": "aac",
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "3gp": {"codec": "mpeg4", "sound": "aac"},
    "matroska": {"sound": "aac"},
    "webm": VP8 | {"sound": "libopus"},
    "avi": {"sound": "mp2"},
    "mpeg4.avi": {"codec": "mpeg4", "sound": "pcm_s16le"},
    "mpegts": {"sound": "mp2"},
    "m2ts.mpegts": {"sound": "aac", "container_options": {"mpegts_m2ts_mode": "1"}},
    "mpeg2.mpegts": {"codec": "mpeg2video", "sound": "mp2"},
    "flv": {"sound": "aac"},
    "mpeg": {"codec": "mpeg1video", "sound": "mp2"},
    "vob": {"codec": "mpeg2video", "sound": "mp2"},
    "asf": {"codec": "wmv2", "sound": "pcm_s16le"},
    "ogg": VP8 | {"sound": "libopus"},
    "gif": {"codec": "gif", "pixel_format": "rgb8"},
}


def make(name, tmp_path, images=None, *, sound_seconds=None, **settings):
    """A file of a second, with a sound track for so many seconds."""
    chosen = {"gop": 10} | CONTAINERS[name] | settings
    sound = chosen.pop("sound", None)
    if sound_seconds and sound:
        chosen["sound"] = (sound, sound_seconds)
    path = tmp_path / "v"
    write_video(path, noise_images(25) if images is None else images,
                container=name.split(".")[-1], **chosen)  # fmt: skip
    return path.read_bytes()


def damage(data):
    """What reading a file to its end says was lost."""
    with VideoReader(data, short_side=16) as reader:
        for _ in reader:
            pass
    return reader.damage


@pytest.mark.parametrize("sound_seconds", [None, 1.5])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_cut_is_told(tmp_path, name, sound_seconds):
    data = make(name, tmp_path, sound_seconds=sound_seconds)
    assert damage(data) is None
    # 8 more: 60 % of one file are whole packets of a transport stream, which then looks sound.
    for length in [*(int(len(data) * part) + 8 for part in (0.3, 0.6, 0.9, 0.99)), len(data) - 1]:
        try:
            words = damage(data[:length])
        except VideoError as error:
            assert "cut short" in str(error)
        else:
            assert words is not None, length
            assert words.startswith(f"<{length} bytes>: the file ends "), words


def test_the_words(tmp_path):
    """The first sizes are the file's, the second what the container claims: here the whole."""
    for name in ("matroska", "flv", "asf"):
        data = make(name, tmp_path)
        assert damage(data[:9000]).startswith(
            f"<9000 bytes>: the file ends after 9,000 of {len(data):,} bytes"
        )
    data = make("mpegts", tmp_path)
    assert "the file ends after 20,000 of at least 20,116 bytes" in damage(data[:20000])
    data = make("matroska", tmp_path)
    with pytest.raises(VideoError, match=r"which lasts 0\.\d+ s; the file ends after 9,000 of "):
        read_video(data[:9000], start_seconds=0.9)


def test_a_window_before_the_cut_is_sound(tmp_path):
    data = make("matroska", tmp_path)
    with VideoReader(data[:-100], end_seconds=0.4) as reader:
        assert len(list(reader)) == 10
        assert reader.damage is None


# --- sound files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTAINERS)
def test_sound_files_are_sound(tmp_path, name):
    reordered = {} if name in ("webm", "ogg", "gif", "asf", "flv") else {"options": {"bf": "2"}}
    for settings in (
        {"images": 1},
        {"images": noise_images(2, 32, 32)},
        {"sound_seconds": 0.1},
        {"sound_seconds": 3},
        reordered,
    ):
        assert damage(make(name, tmp_path, **settings)) is None, settings


@pytest.mark.parametrize("name", ["mp4", "fragmented.mp4", "matroska", "webm", "mpegts", "flv"])
def test_a_variable_rate_is_no_damage(tmp_path, name):
    stamps = np.random.default_rng(0).integers(1, 900, 25).cumsum().tolist()
    data = make(name, tmp_path, sound_seconds=2, pts=stamps, time_base=Fraction(1, 1000))
    assert damage(data) is None


class Pipe:
    """Takes what is written and cannot go back: the muxer learns no size and no duration."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def stream(name, **settings):
    chosen = {"gop": 10} | CONTAINERS[name] | settings
    if "sound" in chosen:
        chosen["sound"] = (chosen["sound"], 1.5)
    pipe = Pipe()
    write_video(pipe, noise_images(25), container=name.split(".")[-1], **chosen)
    return pipe.data


@pytest.mark.parametrize(
    "name",
    ["fragmented.mp4", "matroska", "webm", "avi", "mpegts", "m2ts.mpegts", "flv", "mpeg", "asf",
     "ogg", "gif"],
)  # fmt: skip
def test_a_live_recording_is_sound(name):
    assert damage(stream(name)) is None


def open_clusters(data):
    """A recording as browsers write it: the size of no Cluster is known."""
    data, place = bytearray(data), 0
    while (place := data.find(b"\x1f\x43\xb6\x75", place) + 4) >= 4:
        width = 9 - data[place].bit_length()
        data[place : place + width] = ((1 << 7 * width + 1) - 1).to_bytes(width)
    return bytes(data)


@pytest.mark.parametrize("edit", [bytes, open_clusters])
@pytest.mark.parametrize("name", ["matroska", "webm"])
def test_a_live_recording_that_breaks_off_within_a_block(name, edit):
    """Between two blocks nothing is missing as far as anybody can know."""
    data = edit(stream(name, container_options={"live": "1"}))
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in data[:100]  # the Segment
    assert damage(data) is None
    told = [damage(data[:length]) is not None for length in range(len(data) - 200, len(data))]
    if edit is bytes:
        assert all(told)  # the last Cluster is known to be longer
    else:
        whole = [i for i, damaged in enumerate(told) if not damaged]
        assert 0 < len(whole) < 30  # only between two of the sound's packets or pictures


@pytest.mark.parametrize("rest", [bytes(1000), b"\n", b"ID3" + bytes(range(256)), b"\xa3"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_what_others_append_is_no_damage(tmp_path, name, rest):
    words = damage(make(name, tmp_path, sound_seconds=1.5) + rest)
    assert words is None or "the file ends" not in words


def test_a_picture_without_a_trailer_is_sound(tmp_path):
    """Python's own icons were such files."""
    still, two = (make("gif", tmp_path, noise_images(count)) for count in (1, 2))
    assert still[-2:] == two[-2:] == b"\0;"
    assert damage(still[:-1]) is None
    for data in (still[:-2], two[:-1], two[:-2]):
        assert "the file ends without a GIF's trailer" in damage(data)


def test_the_end_of_a_transport_stream_is_found_wherever_its_packets_begin(tmp_path):
    for name, length in (("mpegts", 188), ("m2ts.mpegts", 192)):
        data = make(name, tmp_path)
        assert len(data) % length == 0
        shifted = data[:-1][77:]  # the first packet is not whole either
        assert f"of at least {len(shifted) + 1:,} bytes" in damage(shifted)
        words = damage(data[77:])
        assert words is None or "the file ends" not in words


@pytest.mark.parametrize("name", CONTAINERS)
def test_little_is_read_for_it(tmp_path, name, monkeypatch):
    """From a server every look elsewhere is another request."""
    data = make(name, tmp_path, noise_images(100), sound_seconds=4.5)
    looks = []
    peek = SourceFile.peek

    def note(file, position, size):
        found = peek(file, position, size)
        looks.append((position, len(found)))
        return found

    monkeypatch.setattr(SourceFile, "peek", note)
    assert damage(data) is None
    ahead, *after = looks
    assert ahead[0] == 0 and ahead[1] <= 4096
    assert all(position > 0.5 * len(data) for position, _ in after)
    assert sum(length for _, length in after) < 10_000


def test_lies_about_sizes_are_not_believed_for_long(tmp_path):
    """Neither memory nor time is spent on them."""
    data = make("matroska", tmp_path)
    segment = data.index(b"\x18\x53\x80\x67") + 4
    endless = data[:segment] + b"\x01" + b"\xff" * 6 + b"\xfe" + data[segment + 8 :]
    assert "bytes" in damage(endless)
    data = make("flv", tmp_path)
    size = data.index(b"filesize") + 9
    for number in (float("nan"), float("inf"), -1.0, 1e300):
        broken = data[:size] + struct.pack(">d", number) + data[size + 8 :]
        assert (damage(broken) is None) == (number != 1e300)


# --- real clips -----------------------------------------------------------------------------------


def remux(path, container):
    """The same packets in another container."""
    buffer = io.BytesIO()
    with av.open(str(path)) as source, av.open(buffer, "w", format=container) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        if source.format.name == "avi":
            packets = stamp_mpeg4(packets, BitStreamFilterContext("mpeg4_unpack_bframes", stream))
        for packet in packets:
            packet.stream = copy
            target.mux(packet)
    return buffer.getvalue()


def stamp_mpeg4(packets, unpack):
    """One picture a packet, with the times of presentation, which AVI does not store.

    In the order of decoding a B picture is shown when it is decoded, any other when the next such
    one is.
    """
    unpacked = [found for packet in [*packets, None] for found in unpack.filter(packet)]
    later = len(unpacked)
    for i, packet in reversed(list(enumerate(unpacked))):
        data = bytes(packet)
        is_b = data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2
        packet.pts, packet.dts = (i if is_b else later), i
        later = later if is_b else i
    return unpacked


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no clips in {CLIPS}")
@pytest.mark.parametrize("container", ["matroska", "mpegts", "mov"])
@pytest.mark.parametrize(
    "name",
    ["arm_wrestling_340x256_28fps.mp4", "mpeg4_320x240_25fps.avi",
     "v_GGSY1Qvo990_320x240_19.62fps.mp4"],
)  # fmt: skip
def test_real_clips_in_another_container(name, container):
    """Every frame is the same; WebM takes neither of their codecs."""
    data = remux(CLIPS / name, container)
    ours = read_video(CLIPS / name, fps=None, short_side=128)
    np.testing.assert_array_equal(read_video(data, fps=None, short_side=128), ours)
    assert damage(data) is None
    if container != "mov":  # its index is at its end
        length = len(data) * 4 // 5 // 188 * 188 + 100  # within a packet of the transport stream
        assert "the file ends after" in damage(data[:length])
