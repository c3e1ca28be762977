"""How the pictures of a shard are coded: frames as JPEG, flow as PNG without loss.

`docs/formats.md` has the measurements behind the choice.
"""

import struct
from collections.abc import Sequence
from importlib.metadata import version

import cv2
import numpy as np
import simplejpeg

from i3d.errors import DatasetError
from i3d.presets import Stream

Scalar = str | int | float | bool | None
Box = tuple[slice, slice]  # rows and columns of a picture
EVERYTHING: Box = (slice(None), slice(None))

RGB_QUALITY = 95  # with 4:2:0: OpenCV's defaults, as in the program of the published figures
_PNG_OPTIONS = [
    # Run lengths only: on flow a third smaller than deflate at its fastest, and no slower.
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FAST_FILTERS),
]
_PNG_START = struct.Struct(">16sIIBB")  # up to IHDR, width, height, bits, colour type (0: gray)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def encoding_parameters(
    streams: Sequence[Stream], *, rgb_quality: int = RGB_QUALITY
) -> dict[str, Scalar]:
    """How pictures are coded, for a manifest's parameters."""
    parameters: dict[str, Scalar] = {"rgb_coding": f"jpeg, quality {rgb_quality}, 4:2:0"}
    if "flow" in streams:
        parameters["flow_coding"] = "png, x above y"
    return parameters


def encoding_versions(streams: Sequence[Stream]) -> dict[str, str]:
    """Versions of the libraries that code pictures, for a manifest."""
    versions = {"simplejpeg": version("simplejpeg")}
    if "flow" in streams:
        versions["opencv"] = cv2.__version__
    return versions


def encode_rgb(frame: np.ndarray, *, quality: int = RGB_QUALITY) -> bytes:
    """A frame, uint8 (H, W, 3), as JPEG with chroma halved both ways (4:2:0)."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame),
        quality=quality,
        colorspace="RGB",
        colorsubsampling="420",
        fastdct=False,
    )


def encode_flow(stored: np.ndarray) -> bytes:
    """One flow, uint8 (H, W, 2) as `i3d.clips.quantize_flow` gives it, as gray PNG (2H, W).

    Without loss. x is above y.
    """
    height, width, _ = stored.shape
    gray = stored.transpose(2, 0, 1).reshape(2 * height, width)  # (H, W, 2) -> (2H, W)
    done, png = cv2.imencode(".png", gray, _PNG_OPTIONS)
    if not done:
        raise DatasetError(f"cannot encode flow of {width}x{height} as PNG")
    return png.tobytes()


def decode_rgb(
    jpegs: Sequence[bytes], *, height: int, width: int, box: Box = EVERYTHING
) -> np.ndarray:
    """Frames, uint8 (T, H, W, 3) RGB, from T JPEGs; or that box of each.

    Raises:
        DatasetError: a picture is damaged or of another size; nothing is allocated for it.
    """
    for i, jpeg in enumerate(jpegs):
        check_jpeg(jpeg, i, height=height, width=width)
    frame = np.empty((height, width, 3), np.uint8)  # one picture, which stays in the cache
    frames = np.empty((len(jpegs), *frame[box].shape), np.uint8)
    for i, jpeg in enumerate(jpegs):
        try:
            simplejpeg.decode_jpeg(
                jpeg, colorspace="RGB", fastdct=False, fastupsample=False, buffer=frame
            )
        except ValueError as e:
            raise DatasetError(f"frame {i} is a damaged JPEG ({e})") from e
        frames[i] = frame[box]
    return frames


def decode_flow(
    pngs: Sequence[bytes], *, height: int, width: int, box: Box = EVERYTHING
) -> np.ndarray:
    """Stored flow, uint8 (T, H, W, 2), from T PNGs; or that box of each.

    Raises:
        DatasetError: a picture is damaged or of another size; nothing is allocated for it.
    """
    for i, png in enumerate(pngs):
        check_png(png, i, height=height, width=width)
    rows, columns = len(range(height)[box[0]]), len(range(width)[box[1]])
    flow = np.empty((len(pngs), rows, columns, 2), np.uint8)
    for i, png in enumerate(pngs):
        gray = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        if gray is None or gray.shape != (2 * height, width):
            raise DatasetError(f"flow {i} is a damaged PNG")
        cv2.merge((gray[:height][box], gray[height:][box]), flow[i])  # (2H, W) -> (H, W, 2)
    return flow


def check_jpeg(jpeg: bytes, i: int, *, height: int, width: int) -> None:
    """Refuse what is not a YCbCr JPEG of width W and height H."""
    try:
        found_height, found_width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as e:
        raise DatasetError(f"frame {i} is no JPEG ({e})") from e
    if (found_height, found_width, colours) != (height, width, "YCbCr"):
        raise DatasetError(
            f"frame {i} is a {colours} JPEG of {found_width}x{found_height}; expected a YCbCr one"
            f" of {width}x{height}"
        )


def check_png(png: bytes, i: int, *, height: int, width: int) -> None:
    """Refuse what is not a gray 8-bit PNG of width W and height 2H."""
    start = _PNG_START.pack(_PNG_SIGNATURE, width, 2 * height, 8, 0)
    if not png.startswith(start):
        raise DatasetError(f"flow {i} is no gray 8-bit PNG of {width}x{2 * height}")
