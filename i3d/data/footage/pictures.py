"""Pictures that are a video's frames: their order, and each one's pixels.

    frame_1.png, frame_2.png, frame_10.png   by the last number in the name
    PNG, JPEG, WebP, BMP, TIFF -> uint8 (H, W, 3) RGB, found by content

What is stored is what comes: palettes become their colours, gray three equal channels, transparency
is dropped; colour profiles and EXIF's orientation are not applied. JPEG is decoded by libjpeg-turbo
as the shards' is, the rest by Pillow. What has no 8-bit RGB in it (16 bits, CMYK, several pages) is
refused.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import simplejpeg
from PIL import TiffImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from i3d import files
from i3d.errors import DatasetError
from i3d.video import MAX_PIXELS, MAX_SIDE

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PICTURE_BYTES = 1 << 28  # a file; what MAX_PIXELS take without compression

_NUMBER = re.compile(r"(.*?)([0-9]{1,30})([^0-9]*)", re.ASCII | re.DOTALL)
# Not Image.open, which warns by a limit of pixels that is the whole process's.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
}
# YCbCr is a TIFF whose colours Pillow would take for JPEG's, at full resolution.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


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
        DatasetError: names the picture and what is wrong: damaged, too large (nothing is decoded
            then), or without 8-bit RGB in it.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _decode_jpeg(data, name)
    reader = next((r for start, r in _READERS.items() if data.startswith(start)), None)
    if reader is None:
        raise DatasetError(f"{name} is no PNG, JPEG, WebP, BMP or TIFF")
    try:
        with reader(io.BytesIO(data)) as image:
            _check_size(*image.size, name)
            _check_kind(image, name)
            if reader is PngImageFile:
                reader(io.BytesIO(data)).verify()  # the checksums, over which decoding passes
            image.load()
            image.info.pop("transparency", None)  # whose colour convert() would look for
            return np.array(image.convert("RGB"))
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise a dozen types
        reason = files.explain(error)
        raise DatasetError(f"{name} is a damaged {reader.format} ({reason})") from error


def _decode_jpeg(data: bytes, name: str) -> np.ndarray:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB", "Gray"):
            raise DatasetError(f"{name} is a JPEG in {colours}; convert it to RGB")
        _check_size(width, height, name)
        return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise DatasetError(f"{name} is a damaged JPEG ({error})") from error


def _check_size(width: int, height: int, name: str) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DatasetError(
            f"{name} has {width}x{height} pixels; at most {MAX_SIDE} a side and "
            f"{MAX_PIXELS} in all are read; scale it down first"
        )


def _check_kind(image: ImageFile, name: str) -> None:
    """Refuse what Pillow would make 8-bit RGB of without a word, by its header alone."""
    kind = f"{name} is a {image.format}"
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    if isinstance(image, PngImageFile) and "16" in str(image.tile[0][3]):
        bits = 16
    if bits > 8:
        raise DatasetError(
            f"{kind} of {bits} bits; convert it to 8 bits: what white is in {bits} is not said"
        )
    if set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {1}:
        raise DatasetError(f"{kind} of numbers with a sign; convert it to levels, 0..255")
    if tags.get(Base.Orientation, 1) != 1:
        raise DatasetError(f"{kind} that is to be turned before it is shown; turn it")
    _check_size(tags.get(Base.TileWidth, 1), tags.get(Base.TileLength, 1), f"a tile of {name}")
    if getattr(image, "is_animated", False):
        raise DatasetError(f"{kind} of several pictures; save each frame as a picture")
    if image.mode not in _MODES or (image.mode in ("P", "PA") and image.palette is None):
        raise DatasetError(f"{kind} in {image.mode}; convert it to RGB")
