"""Videos in every container that PyAV writes and the reader takes."""

import io
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
from campaigns.fuzz.cases import Target, Wrong
from campaigns.fuzz.mutations import BOUNDARIES, Files, boundary, damage
from support.videos import noise_images, video_bytes

from i3d.video import VideoReader, read_video

VP8 = {"codec": "libvpx", "options": {"deadline": "realtime"}}
HEVC = {"codec": "libx265", "width": 64, "height": 48, "options": {"x265-params": "log-level=none"}}
MPEG2 = {"codec": "mpeg2video"}
FORMATS: dict[str, dict[str, Any]] = {
    "mp4": {"sound": ("aac", 0.4)},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": HEVC,
    "mov": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "3gp": {"codec": "mpeg4"},
    "3g2": {"codec": "mpeg4"},
    "ipod": {},  # .m4v
    "matroska": {"sound": ("aac", 0.4)},
    "ffv1.matroska": {"codec": "ffv1"},
    "webm": VP8 | {"sound": ("libopus", 0.4)},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "avi": {"codec": "mpeg4", "sound": ("mp2", 0.4)},
    "h264.avi": {},
    "mpegts": {"sound": ("mp2", 0.4)},
    "m2ts.mpegts": {"container_options": {"mpegts_m2ts_mode": "1"}},
    "mpeg": {"codec": "mpeg1video"},
    "vob": MPEG2,
    "svcd": MPEG2,
    "flv": {},
    "flv1.flv": {"codec": "flv"},
    "asf": {"codec": "wmv2"},
    "ogg": VP8,
    "gif": {"codec": "gif", "pixel_format": "rgb8"},
    "apng": {"codec": "apng", "pixel_format": "rgb24"},
    "nut": {"codec": "mpeg4"},
    "mxf": MPEG2,
    "ivf": VP8,
    "yuv4mpegpipe": {"codec": "wrapped_avframe"},
    "h264": {},
    "hevc": HEVC,
    "m4v": {"codec": "mpeg4"},
    "mpeg2video": MPEG2,
    "swf": {"codec": "flv"},
    "rm": {"codec": "rv20"},
    "mjpeg": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "obu": {"codec": "libsvtav1"},
}
NAME = "video"  # without a suffix: a reader finds the format in the content


def samples() -> list[Files]:
    """Of as many of the formats as this FFmpeg writes and the reader takes."""
    found = []
    for name, options in FORMATS.items():
        chosen = {"gop": 4} | options
        width, height = chosen.pop("width", 48), chosen.pop("height", 32)
        images = noise_images(10, width, height)
        try:
            data = video_bytes(images, container=name.split(".")[-1], **chosen)
            frames = read_video(data, short_side=16)
        except Exception:  # encoders differ from build to build
            continue
        if len(frames) >= 9:
            found.append({NAME: data})
    if len(found) < 27:
        raise RuntimeError(f"only {len(found)} formats")
    return found


def read(folder: Path) -> list[Any]:
    """All of it, a window, and every frame once."""
    path = folder / NAME
    with VideoReader(path, short_side=16) as reader:
        whole = _collect(reader)
        told = (reader.info, reader.damage, reader.lost_frames, reader.damaged_frames)
        length = reader.duration_seconds
    found: list[Any] = [whole, told, length]
    if length is not None and length > 0.1:
        with VideoReader(path, short_side=16, start_seconds=length / 2) as reader:
            found.append(_collect(reader))
    with VideoReader(path, fps=None, short_side=None) as reader:
        found.append(_collect(reader))
    return found


def _collect(reader: VideoReader) -> list[Any]:
    count, shapes, total = 0, set(), 0
    for frame in reader:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise Wrong(f"a frame {frame.dtype} {frame.shape}")
        count, total = count + 1, total + int(frame[::7, ::7].sum())
        shapes.add(frame.shape)
    if len(shapes) != 1:
        raise Wrong(f"frames of {len(shapes)} shapes")
    return [count, *shapes, total]


def check(found: list[Any]) -> None:
    (count, shape, _), (info, damage_words, lost, damaged), length = found[:3]
    if min(shape[:2]) != 16:
        raise Wrong(f"short side of {shape}")
    if length is None or (count > 1 and abs(count - 25 * length) > 0.5001):
        raise Wrong("another number of frames than its duration has")
    if lost < 0 or damaged < 0:
        raise Wrong("less than nothing was lost")
    for number in (info.fps, info.duration_seconds):
        if number is not None and not np.isfinite(number):
            raise Wrong("a header that is not finite")
    if damage_words is not None and len(damage_words.splitlines()) != 1:
        raise Wrong("damage in several lines")


# --- headers --------------------------------------------------------------------------------------


BOXES = b"moov trak mdia minf stbl stsd stts stss stsc stsz stco ctts mdhd tkhd mvhd elst avcC hvcC"
BOXES += b" moof traf trun tfhd tfdt esds hdlr edts mdat ftyp avih strh strf idx1 movi LIST RIFF"
EBML = ["1a45dfa3", "18538067", "1549a966", "1654ae6b", "1f43b675", "e7", "a3", "83", "ae", "b0"]
EBML += ["ba", "2ad7b1", "4489", "23e383", "1c53bb6b", "bb", "d7", "73c5", "86", "63a2"]
OTHERS = ["0000010f", "000001b3", "000001ba", "000001e0", "47", "4f676753", "464c5601", "3026b275"]
OTHERS += ["2cff", "21f904", "49484452", "6663544c", "444b4946", "060e2b34", "00000001", "89504e47"]
MARKS = BOXES.split() + [bytes.fromhex(mark) for mark in [*EBML, *OTHERS]]


def falsify_fields(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Numbers that stand just before or behind a container's known marks."""
    data = files[NAME]
    marks = [mark for mark in MARKS if mark in data]
    if not marks:
        return {NAME: damage(random, data)}
    out = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 3])):
        mark = random.choice(marks)
        places, at = [], data.find(mark)
        while at >= 0 and len(places) < 50:
            places.append(at)
            at = data.find(mark, at + 1)
        width = random.choice([1, 2, 3, 4, 8])
        at = random.choice(places) + random.choice([-4, *range(len(mark), len(mark) + 40)])
        if 0 <= at <= len(out) - width:
            out[at : at + width] = boundary(random, width)
    return {NAME: bytes(out)}


def falsify_text(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """The decimal numbers of a text header, such as YUV4MPEG's."""
    data = files[NAME]
    line, rest = data[:80], data[80:]
    words = line.split(b" ")
    i = random.randrange(len(words))
    words[i] = words[i][:1] + str(random.choice(BOUNDARIES)).encode()
    return {NAME: b" ".join(words) + rest}


def exchange_packets(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Coded pictures out of order, damaged, or with other times, muxed again by FFmpeg."""
    data = files[NAME]
    with av.open(io.BytesIO(data)) as source:
        stream = source.streams.video[0]
        container = source.format.name.split(",")[0]
        buffer = io.BytesIO()
        packets = [p for p in source.demux(stream) if p.size]
        if random.random() < 0.2:
            random.shuffle(packets)
        with av.open(buffer, "w", format={"mov": "mp4"}.get(container, container)) as target:
            copy = target.add_stream_from_template(stream)
            for packet in packets:
                if random.random() < 0.2 and packet.pts is not None:
                    packet.pts = packet.dts = packet.pts + random.choice(
                        [n for n in BOUNDARIES if abs(n) < 1 << 40]
                    )
                packet.stream = copy
                try:
                    target.mux(packet)
                except (av.FFmpegError, ValueError):
                    continue
    return {NAME: buffer.getvalue()}


TARGETS = [
    Target(
        "videos", samples, read, check,
        (falsify_fields, falsify_fields, falsify_fields, falsify_text, exchange_packets),
        memory_mib=2048, seconds=60.0,
    ),
]  # fmt: skip
