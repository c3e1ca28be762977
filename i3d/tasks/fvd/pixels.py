"""Frames -> what a protocol's network sees: the first resize, 8 bits, the network's resize.

    uint8, or float32 0..255 (T, H, W, 3)
      --resolution, filter, crop: to the size at which videos are generated--> (T, N, N, 3)
      --values: float, round or truncate-->
      --resize, fit: to the network's size--> float32 (T, size, size, 3), 0..255

Everything but Lanczos is PyTorch's, on the device of the frames, frame by frame the same bits on a
CPU whatever the batch.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from i3d.errors import UsageError
from i3d.tasks.fvd.protocols import Protocol
from i3d.video import MAX_PIXELS, MAX_SIDE


def prepare_frames(frames: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """All that a protocol does to frames before the network: see the module.

    Args:
        frames: uint8, or float32 in 0..255, (T, H, W, 3), on any device.
        protocol: says how.

    Returns:
        float32 (T, size, size, 3) in 0..255.
    """
    if protocol.resolution is not None:
        frames = resize_first(frames, protocol)
    return resize_for_network(quantize(frames, protocol), protocol)


# --- the first resize -----------------------------------------------------------------------------


def resize_first(frames: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """To the resolution at which videos are generated, as a protocol's source does it.

    Returns:
        float32 in 0..255, or uint8 of Lanczos, (T, resolution, resolution, 3).
    """
    size = protocol.resolution
    assert size is not None
    height, width = frames.shape[1:3]
    if (height, width) == (size, size):
        return frames
    pillow = protocol.filter == "lanczos"
    if protocol.crop == "squash":
        return _RESIZES[protocol.filter](frames, size, size)
    if protocol.crop == "square":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _RESIZES[protocol.filter](
            frames[:, top : top + side, left : left + side], size, size
        )
    if pillow:  # as torchvision's resize and center_crop, which its users call
        long = int(size * max(height, width) / min(height, width))
        tall, wide = (size, long) if height <= width else (long, size)
        top, left = round((tall - size) / 2), round((wide - size) / 2)  # halves to the even one
    else:
        tall, wide = _short_side(height, width, size)
        top, left = (tall - size) // 2, (wide - size) // 2
    resized = _RESIZES[protocol.filter](frames, tall, wide)
    return resized[:, top : top + size, left : left + size]


def _short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Both sides where the short one becomes ``size``: the other rounded up, in floats.

    So VideoGPT's code has it, and what was copied from it.
    """
    scale = size / min(height, width)
    if height < width:
        return size, math.ceil(width * scale)
    return math.ceil(height * scale), size


def _in_unit(frames: torch.Tensor) -> torch.Tensor:
    """Frames as the sources resize them: float32 (T, 3, H, W) in 0..1."""
    return frames.permute(0, 3, 1, 2).float() / 255.0


def _resize_bilinear(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """VideoGPT's ``preprocess``: it takes 0.5 off, and its script adds it, which rounds."""
    resized = F.interpolate(_in_unit(frames), (height, width), mode="bilinear", align_corners=False)
    return ((resized - 0.5) + 0.5).permute(0, 2, 3, 1) * 255


def _resize_antialias(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """cd-fvd's ``preprocess``."""
    resized = F.interpolate(
        _in_unit(frames), (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.permute(0, 2, 3, 1) * 255


def _resize_area(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The mean of the pixels that fall onto one."""
    resized = F.interpolate(_in_unit(frames), (height, width), mode="area")
    return resized.permute(0, 2, 3, 1) * 255


def _resize_lanczos(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pillow's, on the CPU: fixed-point weights, rows first, 8 bits in between; uint8.

    Pillow 13.0 begins with the columns for some sizes, which moves values; the sources were
    written, and their numbers measured, with versions that did not: so one axis at a time.
    """
    if frames.dtype != torch.uint8:
        frames = _round(frames)
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, place in zip(frames.cpu().numpy(), resized, strict=True):
        picture = Image.fromarray(frame)
        rows = picture.resize((width, picture.height), Image.Resampling.LANCZOS)
        place[...] = np.asarray(rows.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(resized).to(frames.device)


_RESIZES = {
    "bilinear": _resize_bilinear,
    "antialias": _resize_antialias,
    "lanczos": _resize_lanczos,
    "area": _resize_area,
}


def quantize(frames: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """Fractions of a level as the protocol's source treats them: float32 in 0..255, or uint8."""
    if frames.dtype == torch.uint8:
        return frames
    if protocol.values == "round":
        return _round(frames)
    if protocol.values == "truncate":
        return frames.clamp(0, 255).to(torch.uint8)
    return frames


def _round(frames: torch.Tensor) -> torch.Tensor:
    """To uint8, halves up, as StyleGAN-V's generator is rounded."""
    return (frames + 0.5).clamp(0, 255).to(torch.uint8)


# --- the network's resize -------------------------------------------------------------------------


def resize_for_network(frames: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """Resize and crop to the network's size: float32 (T, size, size, 3).

    Values stay 0..255; nothing is rounded.
    """
    size, whole = protocol.size, slice(0, protocol.size)
    height, width = frames.shape[1:3]
    half_pixel = protocol.resize == "half-pixel"
    if protocol.fit == "squash":
        return resize_bilinear(frames, size, size, half_pixel=half_pixel, box=(whole, whole))
    tall, wide = _short_side(height, width, size)
    top, left = (tall - size) // 2, (wide - size) // 2
    box = slice(top, top + size), slice(left, left + size)
    return resize_bilinear(frames, tall, wide, half_pixel=half_pixel, box=box)


def resize_bilinear(
    frames: torch.Tensor, height: int, width: int, *, half_pixel: bool, box: tuple[slice, slice]
) -> torch.Tensor:
    """Part of bilinearly resized frames, without antialiasing: float32 (T, h, w, 3).

    With ``half_pixel`` the source of output pixel i is at ``(i + 0.5) * in / out - 0.5``, as in
    PyTorch; without, at ``i * in / out``, as TF1's ``resize_bilinear`` has it, which shifts the
    picture towards the first pixel. Beyond the border the outermost pixel is repeated.

    Args:
        frames: uint8 or float32 (T, H, W, 3).
        height: pixels of the whole result.
        width: pixels of the whole result.
        half_pixel: see above.
        box: rows and columns of the result that are computed.
    """
    device = frames.device
    top, bottom, down = (
        tap.to(device) for tap in _taps(frames.shape[1], height, half_pixel, box[0])
    )
    left, right, across = (
        tap.to(device) for tap in _taps(frames.shape[2], width, half_pixel, box[1])
    )
    across = across[:, None]  # (w, 1), beside the channels

    def line(rows: torch.Tensor) -> torch.Tensor:
        lines = frames.index_select(1, rows)
        start = lines.index_select(2, left).float()
        # Two steps, not addcmul, which may round once: TensorFlow's bits
        step = lines.index_select(2, right).float().sub_(start).mul_(across)
        return start.add_(step)

    upper = line(top)
    return upper.add_(line(bottom).sub_(upper).mul_(down[:, None, None]))


def _taps(
    size: int, out: int, half_pixel: bool, part: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every output pixel its two source pixels and the second one's weight, in float32."""
    positions = np.arange(out, dtype=np.float32)[part]
    scale = np.float32(size) / np.float32(out)
    if half_pixel:
        half = np.float32(0.5)
        positions = np.maximum((positions + half) * scale - half, np.float32(0))
    else:
        positions = positions * scale
    first = np.minimum(np.floor(positions).astype(np.int64), size - 1)
    second, weight = np.minimum(first + 1, size - 1), positions - first.astype(np.float32)
    return torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(weight)


def check_size(height: int, width: int, what: str) -> None:
    """Refuse frames without pixels, or larger than any video.

    Raises:
        UsageError: says the size.
    """
    if not 0 < min(height, width) <= max(height, width) <= MAX_SIDE or height * width > MAX_PIXELS:
        raise UsageError(
            f"{what} has frames of {width}x{height}; at least one pixel and at most {MAX_PIXELS}"
        )
