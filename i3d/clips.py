"""Frames and flow -> clips: float32 (C, T, 224, 224) in [-1, 1], what the network sees.

    frames uint8 (T, H, W, 3) -> centre crop -> x / 127.5 - 1                -> (3, T, 224, 224)
    flow float32 (T, H, W, 2) -> centre crop -> quantise -> (q - 128) / 127  -> (2, T, 224, 224)

Flow is quantised to 8 bits on the way even where it was never stored, so that a clip from a video
and a clip from a shard are the same bit for bit. Arrays may be numpy's or torch's, on any device;
a clip from a tensor stays on its device, with the same bits. Nothing here repeats frames but
:func:`loop_frames`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from i3d.errors import I3DError, UsageError
from i3d.presets import KINETICS_I3D, MIN_FRAMES, Preset, Scale, Stream

if TYPE_CHECKING:  # torch takes a second to import, and precompute's workers do without
    import torch

Array = TypeVar("Array", bound="np.ndarray | torch.Tensor")

_STORAGE = KINETICS_I3D.flow_storage


def rgb_clip(
    frames: "np.ndarray | torch.Tensor",
    *,
    crop: int = KINETICS_I3D.crop,
    scale: Scale = KINETICS_I3D.rgb_scale,
) -> "torch.Tensor":
    """Centre-crop and scale frames for the RGB network.

    Args:
        frames: uint8 (T, H, W, 3), RGB, T at least 1, H and W at least ``crop``.
        crop: pixels of the square crop.
        scale: of another preset; default: as written below.

    Returns:
        float32 (3, T, crop, crop) in [-1, 1], contiguous: ``x / 127.5 - 1``, rounded once (the
        float32 nearest to the exact value).

    Raises:
        I3DError: wrong type or shape, no frames, or frames smaller than the crop.
    """
    _check("frames", frames, dtypes=("uint8",), channels=3)
    return _scale(_channels_first(center_crop(frames, crop)), scale)


def flow_clip(
    flow: "np.ndarray | torch.Tensor",
    *,
    crop: int = KINETICS_I3D.crop,
    bound_pixels: float = KINETICS_I3D.flow_bound_pixels,
    scale: Scale = KINETICS_I3D.flow_scale,
) -> "torch.Tensor":
    """Centre-crop and scale optical flow for the flow network.

    Args:
        flow: float32 (T, H, W, 2), pixels, x before y; or uint8 of that shape as
            :func:`quantize_flow` stores it. T is at least 1, H and W at least ``crop``.
        crop: pixels of the square crop.
        bound_pixels: flow beyond ± this is clipped; for uint8 it was applied when stored.
        scale: of stored flow of another preset; default: as written below.

    Returns:
        float32 (2, T, crop, crop) in [-1, 1], contiguous: ``(q - 128) / 127``.

    Raises:
        I3DError: wrong type or shape, no flow, flow smaller than the crop, NaN or infinity.
    """
    _check("flow", flow, dtypes=("float32", "uint8"), channels=2)
    cropped = center_crop(flow, crop)
    if _dtype(cropped) == "float32":
        cropped = quantize_flow(cropped, bound_pixels=bound_pixels)
    return _scale(_channels_first(cropped), scale)


def scale_clip(pixels: "torch.Tensor", stream: Stream, preset: Preset) -> "torch.Tensor":
    """Scale a clip that is cropped already: uint8 (T, h, w, C), as stored, to float32 (C, T, h, w).

    As `rgb_clip` and `flow_clip` do it, with the preset's numbers.
    """
    return _scale(_channels_first(pixels), preset.scale(stream))


def scale_pixels(pixels: "torch.Tensor", stream: Stream, preset: Preset) -> "torch.Tensor":
    """Scale a batch that is cropped already, on its device: the bits of `scale_clip`.

    Args:
        pixels: uint8 (B, T, h, w, C), as stored.
        stream: RGB or flow.
        preset: whose numbers.

    Returns:
        float32 (B, C, T, h, w) in [-1, 1], in memory as ``torch.channels_last_3d``: the pixels lie
        so already, and convolutions are faster on it.
    """
    import torch

    # Keeps the order in memory: (B, T, h, w, C) -> (B, C, T, h, w), channels last.
    return _scale(pixels.permute(0, 4, 1, 2, 3).to(torch.float32), preset.scale(stream))


def scale_frames(frames: "torch.Tensor") -> "torch.Tensor":
    """Scale frames that were resized to fractions, for the RGB network.

    Args:
        frames: float32 (B, T, H, W, 3) in 0..255.

    Returns:
        float32 (B, 3, T, H, W) in [-1, 1]: ``2 x / 255 - 1``, rounded in the order of
        google-research's frechet_video_distance, not once as by :func:`rgb_clip`.
    """
    return frames.permute(0, 4, 1, 2, 3).contiguous().mul_(2).div_(255).sub_(1)


def quantize_flow(flow: Array, *, bound_pixels: float = KINETICS_I3D.flow_bound_pixels) -> Array:
    """Quantise flow for storage: ``round(clip(flow, -20, 20) * 127 / 20) + 128``.

    Computed in float32, the multiplication first; halves round to even.

    Args:
        flow: float32 (T, H, W, 2), pixels; T may be 0.
        bound_pixels: flow beyond ± this is clipped.

    Returns:
        uint8 (T, H, W, 2) in 1..255; 128 is no motion.

    Raises:
        I3DError: wrong type or shape, NaN or infinity.
    """
    _check("flow", flow, dtypes=("float32",), channels=2, empty=True)
    x: Any = flow
    if 0 not in x.shape and not np.isfinite([float(x.min()), float(x.max())]).all():
        raise I3DError("flow has NaN or infinite values; compute it again in finite pixels")
    if isinstance(x, np.ndarray):
        bound = np.float32(bound_pixels)
        steps = np.clip(x, -bound, bound)
        steps *= np.float32(_STORAGE.steps)
        steps /= bound
        np.rint(steps, out=steps)
        steps += np.float32(_STORAGE.zero)
        return cast(Array, steps.astype(np.uint8))
    x = x.clamp(-bound_pixels, bound_pixels).mul_(_STORAGE.steps)
    return cast(Array, _divide(x, bound_pixels).round_().add_(_STORAGE.zero).byte())


def dequantize_flow(
    stored: Array,
    *,
    bound_pixels: float = KINETICS_I3D.flow_bound_pixels,
    storage: Scale = _STORAGE,
) -> Array:
    """Turn stored flow back into pixels: ``(q - 128) * 20 / 127``.

    Within the bound it differs from the flow that was stored by at most 10 / 127 = 0.079 pixels;
    no motion comes back as exactly 0.

    Args:
        stored: uint8 (T, H, W, 2), as :func:`quantize_flow` returns it; T may be 0.
        bound_pixels: the bound it was quantised with.
        storage: of another preset; default: as written above.

    Returns:
        float32 (T, H, W, 2), pixels.

    Raises:
        I3DError: wrong type or shape.
    """
    _check("stored flow", stored, dtypes=("uint8",), channels=2, empty=True)
    x: Any = stored
    if isinstance(x, np.ndarray):
        flow = x.astype(np.float32)
        flow -= np.float32(storage.zero)
        flow *= np.float32(bound_pixels)
        flow /= np.float32(storage.steps)
        return cast(Array, flow)
    return cast(Array, _divide(x.float().sub_(storage.zero).mul_(bound_pixels), storage.steps))


def center_crop(x: Array, size: int) -> Array:
    """The central square of (T, H, W, C), as a view: (T, size, size, C); offsets are floored.

    Raises:
        I3DError: the image is smaller than the crop.
    """
    if x.ndim != 4:
        raise I3DError(f"center_crop takes (T, H, W, C), not shape {tuple(x.shape)}")
    if size < 1:
        raise UsageError(f"crop={size} must be at least 1 pixel")
    height, width = x.shape[1:3]
    if min(height, width) < size:
        raise I3DError(
            f"frames of {width}x{height} are smaller than the crop of {size}x{size}; read the "
            f"video with a short side of at least {size}, or crop less"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return cast(Array, x[:, top : top + size, left : left + size])


def loop_frames(x: Array, length: int) -> Array:
    """Repeat (T, ...) from its start until it has ``length`` frames.

        0 1 2  ->  0 1 2 0 1 2 0        (length 7)

    What is long enough already comes back as it is and is never cut: a test clip is
    ``loop_frames(x[:250], 250)``.

    Raises:
        I3DError: there are no frames.
    """
    count = len(x)
    if count == 0:
        raise I3DError("there are no frames to loop; at least 1 is needed")
    if count >= length:
        return x
    return cast(Array, x[np.arange(length) % count])


@dataclass(frozen=True)
class Views:
    """Which parts of a video the network sees at test time; their logits are averaged.

        clips = 3                        crops = 3
        |-----|                          +---+---+---+
             |-----|     over time       | 0 | 1 | 2 |  over the longer side; the crop's corners
                  |-----|                +---+---+---+  are centred on the shorter one

    The default is the original's test clip: the first 250 frames, centre crop. Papers since
    Non-local networks (arXiv 1711.07971) report 10 clips of 3 crops.

    Attributes:
        frames: length of each clip, at least 9; a shorter video is looped, and is one clip.
        clips: spaced evenly from the first frame to the last; one alone begins at the first frame.
        crops: 1, or 3.

    Raises:
        UsageError: a number that has no meaning.
    """

    frames: int = KINETICS_I3D.clip_frames
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.frames < MIN_FRAMES:
            raise UsageError(f"frames {self.frames}: the network needs at least {MIN_FRAMES}")
        if self.clips < 1:
            raise UsageError(f"clips {self.clips}: it must be at least 1")
        if self.crops not in (1, 3):
            raise UsageError(f"crops {self.crops}: it must be 1 (centre) or 3")

    def starts(self, length: int) -> tuple[int, ...]:
        """First frame of every clip of a video of ``length`` frames."""
        room = length - self.frames
        if room <= 0 or self.clips == 1:
            return (0,)
        return tuple(i * room // (self.clips - 1) for i in range(self.clips))

    def corners(self, height: int, width: int, preset: Preset) -> tuple[tuple[int, int], ...]:
        """(top, left) of every crop of the preset, in pixels.

        Raises:
            I3DError: the picture is smaller than the crop.
        """
        crop = preset.crop
        if min(height, width) < crop:
            raise I3DError(f"frames of {width}x{height} are smaller than the crop of {crop}x{crop}")
        top, left = preset.find_corner(height, width)
        if self.crops == 1:
            return ((top, left),)
        if width >= height:
            return (top, 0), (top, left), (top, width - crop)
        return (0, left), (top, left), (height - crop, left)


def _check(
    name: str, x: Any, *, dtypes: tuple[str, ...], channels: int, empty: bool = False
) -> None:
    """Refuse what is not (T, H, W, channels) of one of the types."""
    wanted = f"{' or '.join(dtypes)} (T, H, W, {channels})"
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise I3DError(f"{name} must be a numpy array or torch tensor {wanted}, not {type(x)}")
    if x.ndim != 4 or x.shape[3] != channels or _dtype(x) not in dtypes:
        raise I3DError(f"{name} must be {wanted}, not {_dtype(x)} {tuple(x.shape)}")
    if len(x) == 0 and not empty:
        raise I3DError(f"{name} has no frames (T = 0); a clip needs at least 1 (flow: 2 frames)")


def _dtype(x: Any) -> str:
    """The name of a numpy or torch data type, e.g. ``uint8``."""
    return str(x.dtype).removeprefix("torch.")


def _channels_first(x: "np.ndarray | torch.Tensor") -> "torch.Tensor":
    """(T, H, W, C) -> a new contiguous float32 tensor (C, T, H, W)."""
    import torch

    # The copy also covers read-only arrays and negative strides, which torch does not.
    tensor = torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x
    return tensor.permute(3, 0, 1, 2).to(
        torch.float32, memory_format=torch.contiguous_format, copy=True
    )


def _scale(x: "torch.Tensor", scale: Scale) -> "torch.Tensor":
    """``(x - zero) / steps`` of whole numbers, in place, rounded once.

    Doubled, so that all but the division is exact: ``x / 127.5 - 1 = (2 x - 255) / 255``.
    """
    return _divide(x.mul_(2).sub_(2 * scale.zero), 2 * scale.steps)


def _divide(x: "torch.Tensor", divisor: float) -> "torch.Tensor":
    """Divide in place, correctly rounded.

    CUDA multiplies by the reciprocal of a Python number, which is other bits; by a tensor on the
    device it divides.
    """
    return x.div_(x.new_tensor(divisor))
