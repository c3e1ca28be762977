"""Pictures that are a video's frames: their order, and each one's pixels.

    frame_1.png, frame_2.png, frame_10.png   by the last number in the name
    PNG, JPEG, WebP, BMP, TIFF -> uint8 (H, W, 3) RGB, found by content

What is stored is what comes: palettes become their colours, gray three equal channels, transparency
is dropped; colour profiles and EXIF's orientation are not applied. JPEG is decoded by libjpeg-turbo
as the shards' is, the rest by OpenCV. What has no 8-bit RGB in it (16 bits, CMYK, several pages) is
refused.
"""

import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from i3d.errors import DatasetError
from i3d.video import MAX_PIXELS, MAX_SIDE

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PICTURE_BYTES = 1 << 28  # a file; what MAX_PIXELS take without compression

_NUMBER = re.compile(r"(.*?)([0-9]{1,30})([^0-9]*)", re.ASCII | re.DOTALL)
_DEPTH_REMEDY = "convert it to 8 bits: what white is in 16 is not said"
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_TIFF_STARTS = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_TYPES = {3: ("H", 2), 4: ("I", 4)}


class PictureHead(NamedTuple):
    """What a picture's header says."""

    format: str
    width: int
    height: int


# --- their order ----------------------------------------------------------------------------------


def order_frames(names: Sequence[str]) -> list[int]:
    """Places of the frames' names in the order of their numbers.

    Args:
        names: file names without a folder.

    Raises:
        DatasetError: a name has no number, two have the same, one is missing, or they are named
            differently before it.
    """
    found = []
    for name in names:
        stem = name.rpartition(".")[0]
        match = _NUMBER.fullmatch(stem)
        if match is None:
            raise DatasetError(
                f"{_quote(name)} has no number to be put in order by (1 to 30 digits)"
            )
        found.append((int(match.group(2)), match.group(1)))
    order = sorted(range(len(names)), key=lambda i: (found[i][0], names[i]))
    numbers = [found[i][0] for i in order]
    for a, b in pairwise(order):
        if found[a][1] != found[b][1]:
            raise DatasetError(
                f"{_quote(names[a])} and {_quote(names[b])} are named differently before their "
                "numbers; a folder holds the frames of one video"
            )
        if found[a][0] == found[b][0]:
            raise DatasetError(f"{_quote(names[a])} and {_quote(names[b])} have the same number")
    steps = Counter(b - a for a, b in pairwise(numbers))
    step = max(steps, key=lambda s: (steps[s], -s), default=0)
    for place, (a, b) in enumerate(pairwise(numbers)):
        one, other = (_quote(names[order[place + k]]) for k in (0, 1))
        if b - a > step:
            raise DatasetError(f"frame {a + step} is missing between {one} and {other}")
        if b - a < step:
            raise DatasetError(
                f"{one} and {other} are {b - a} apart, and most frames {step}: one of them is none "
                "of the video's, or others are missing"
            )
    return order


def _quote(name: str) -> str:
    return name if name.isprintable() and len(name) <= 100 else f"{name!r:.100}"


# --- their pixels ---------------------------------------------------------------------------------


class OpenPictures:
    """A video whose frames are pictures; see `i3d.data.footage.source.OpenVideo`.

    Args:
        names: what messages call the pictures, in the order of the frames.
        load: gives the bytes of picture i.
    """

    damage: str | None = None

    def __init__(self, names: Sequence[str], load: Callable[[int], bytes]) -> None:
        self._names, self._load = names, load

    def count_frames(self) -> int:
        """See `OpenVideo.count_frames`."""
        return len(self._names)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """See `OpenVideo.read`."""
        first: np.ndarray | None = None
        newest = -1
        frame: np.ndarray = np.empty(0, np.uint8)
        for number in numbers:
            if number >= len(self._names):
                return
            if number != newest:
                name = _quote(self._names[number])
                frame = decode_picture(self._load(number), name)
                first = frame if first is None else first
                if frame.shape != first.shape:
                    raise DatasetError(
                        f"{name} is {frame.shape[1]}x{frame.shape[0]}, and frames before it are "
                        f"{first.shape[1]}x{first.shape[0]}; a video has one size"
                    )
                newest = number
            yield frame


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """A picture's pixels: uint8 (H, W, 3), RGB.

    Raises:
        DatasetError: names the picture and what is wrong; nothing is allocated for it.
    """
    head = read_head(data, name)
    if head.format == "JPEG":
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
        except ValueError as error:
            raise DatasetError(f"{name} is a damaged JPEG ({error})") from error
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is raised below
    try:
        how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        raise DatasetError(f"{name} is a damaged {head.format}") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if picture is None or picture.shape != (head.height, head.width, 3):
        raise DatasetError(f"{name} is a damaged {head.format}")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def read_head(data: bytes, name: str) -> PictureHead:
    """Format and size of a picture that can be decoded to 8-bit RGB.

    Raises:
        DatasetError: it cannot, or is too large or cut short.
    """
    try:
        if data.startswith(_PNG_START):
            head = _read_png(data, name)
        elif data.startswith(b"\xff\xd8\xff"):
            head = _read_jpeg(data, name)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            head = _read_webp(data, name)
        elif data.startswith(b"BM"):
            head = _read_bmp(data)
        elif data[:4] in _TIFF_STARTS:
            head = _read_tiff(data, name)
        else:
            raise DatasetError(f"{name} is no PNG, JPEG, WebP, BMP or TIFF")
    except (struct.error, IndexError) as error:
        raise DatasetError(f"{name} is damaged: its header is cut short") from error
    if not min(head.width, head.height) > 0:
        raise DatasetError(f"{name} is a damaged {head.format} ({head.width}x{head.height})")
    if max(head.width, head.height) > MAX_SIDE or head.width * head.height > MAX_PIXELS:
        raise DatasetError(
            f"{name} has {head.width}x{head.height} pixels; at most {MAX_SIDE} a side and "
            f"{MAX_PIXELS} in all are read; scale it down first"
        )
    return head


def _read_png(data: bytes, name: str) -> PictureHead:
    """Its chunks are walked to the end: OpenCV prints what libpng says of damage."""
    width, height, bits = struct.unpack_from(">IIB", data, len(_PNG_START))
    if bits > 8:
        raise DatasetError(f"{name} is a PNG of {bits} bits; {_DEPTH_REMEDY}")
    at, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data.ljust(at + 8, b"\0"), at)
        content = memoryview(data)[at + 4 : at + 8 + size]
        checksum = data[at + 8 + size : at + 12 + size]
        if len(checksum) < 4:
            raise DatasetError(f"{name} is a PNG that was cut short")
        if zlib.crc32(content) != int.from_bytes(checksum, "big"):
            raise DatasetError(f"{name} is a damaged PNG: a checksum does not match")
        if kind == b"acTL":
            raise DatasetError(f"{name} is an animated PNG; save each frame as a picture")
        at += 12 + size
    return PictureHead("PNG", width, height)


def _read_jpeg(data: bytes, name: str) -> PictureHead:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DatasetError(f"{name} is a damaged JPEG ({error})") from error
    if colours not in ("YCbCr", "RGB", "Gray"):
        raise DatasetError(f"{name} is a JPEG in {colours}; convert it to RGB")
    return PictureHead("JPEG", width, height)


def _read_webp(data: bytes, name: str) -> PictureHead:
    match data[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return PictureHead("WebP", width & 0x3FFF, height & 0x3FFF)
        case b"VP8L":
            (sides,) = struct.unpack_from("<I", data, 21)
            return PictureHead("WebP", (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1)
        case b"VP8X":
            if data[20] & 2:
                raise DatasetError(f"{name} is an animated WebP; save each frame as a picture")
            sides = data[24:30].ljust(6, b"\0")
            width, height = (int.from_bytes(sides[i : i + 3], "little") + 1 for i in (0, 3))
            return PictureHead("WebP", width, height)
    raise DatasetError(f"{name} is a damaged WebP")


def _read_bmp(data: bytes) -> PictureHead:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return PictureHead("BMP", width, abs(height))


def _read_tiff(data: bytes, name: str) -> PictureHead:
    """The tags of its only page."""
    order = _TIFF_STARTS[data[:4]]
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    tags: dict[int, tuple[int, ...]] = {}
    for i in range(count):
        place = at + 2 + 12 * i
        tag, kind, values = struct.unpack_from(f"{order}HHI", data, place)
        letter, size = _TIFF_TYPES.get(kind, ("", 0))
        if letter and 1 <= values <= 16:
            (far,) = struct.unpack_from(f"{order}I", data, place + 8)
            begin = place + 8 if values * size <= 4 else far
            tags[tag] = struct.unpack_from(f"{order}{values}{letter}", data, begin)
    (following,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)
    if following:
        raise DatasetError(f"{name} is a TIFF of several pages; save each frame as a picture")
    if max(tags.get(258, (1,))) > 8 or tags.get(339, (1,))[0] != 1:
        raise DatasetError(f"{name} is a TIFF of {max(tags.get(258, (1,)))} bits; {_DEPTH_REMEDY}")
    if tags.get(277, (1,))[0] not in (1, 3):
        # OpenCV multiplies colours with their transparency
        raise DatasetError(
            f"{name} is a TIFF of {tags[277][0]} channels; save RGB without transparency"
        )
    if tags.get(274, (1,))[0] != 1:
        raise DatasetError(f"{name} is a TIFF that is to be turned before it is shown; turn it")
    width, height = tags.get(256, (0,))[0], tags.get(257, (0,))[0]
    tile = tags.get(322, (0,))[0] * tags.get(323, (0,))[0]
    if tile > MAX_PIXELS:
        raise DatasetError(f"{name} is a damaged TIFF: tiles of {tile} pixels")
    return PictureHead("TIFF", width, height)
