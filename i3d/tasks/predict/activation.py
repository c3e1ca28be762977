"""Where in a clip the evidence for a class lies: class activation maps.

The head is linear: of Mixed_5c (C, t, h, w) it takes the average over space and over neighbouring
pairs of time steps, multiplies by the classifier's weights, and averages over the T' = t - 1 pairs.
So the logit of a class is the sum of what the cells give to it, and of the class's bias:

    s[t,y,x]   = sum over c of weight[class,c] * Mixed_5c[c,t,y,x]
    map[t,y,x] = (s[t,y,x] + s[t+1,y,x]) / (2 h w T')          (T', h, w)
    logit      = sum of the map + bias[class]

Class activation maps are of Zhou et al., "Learning Deep Features for Discriminative Localization"
(CVPR 2016, arXiv 1512.04150); here they have a time axis.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from i3d.classes import ClassList
from i3d.errors import UsageError
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.models.i3d import I3D, TABLE, Conv, Mixed
from i3d.models.padding import same_padding
from i3d.presets import MIN_FRAMES, STREAM_CHANNELS, find_preset
from i3d.tasks.network import compute

_LAST = TABLE[-1][0]  # Mixed_5c


def activation_map(model: I3D, clip: Tensor, class_: str | int) -> Tensor:
    """What each cell of a clip gives to the logit of a class.

    Positive cells speak for the class, negative ones against it. The clip is looked at as a whole:
    memory grows with its length.

    Args:
        model: RGB or flow, folded or not, on any device. It is looked at in evaluation mode, and
            left in the mode that it is in.
        clip: float32 (C, T, 224, 224) or (1, C, T, 224, 224) in [-1, 1], T >= 9, as
            :func:`i3d.rgb_clip` and :func:`i3d.flow_clip` make it. A network for smaller pictures
            (`i3d.presets`) takes those of its own crop.
        class_: its name, or its index among the model's classes.

    Returns:
        float32 (T', 7, 7), T' = ceil(T / 8) - 1, on the CPU: (time, y, x), in logits. Its sum is
        the class's logit less the classifier's bias. :func:`upsample_map` gives each cell its place
        in the clip.

    Raises:
        UsageError: no such class, a clip of another shape or size, or a model that is no `I3D`.
    """
    if not isinstance(model, I3D):
        name = model.name if isinstance(model, ExportedNetwork) else f"a {type(model).__name__}"
        raise UsageError(
            f"{name}: an activation map needs the network's layers, which only an I3D gives; use "
            "the checkpoint that it was made from"
        )
    index = _find_class(model, class_)
    batch = _as_batch(model, clip)
    weight = model.Logits.get_submodule("Conv3d_0c_1x1").get_parameter("weight").detach()
    with _evaluating(model):
        cells = compute(model, batch.to(weight), _LAST)[0]  # (C, t, h, w)
    weights = weight[index].flatten().cpu().double()  # (C, 1, 1, 1) -> (C,)
    # In double precision, on the CPU: the sum then has the rounding of Mixed_5c alone.
    scores = torch.tensordot(weights, cells.cpu().double(), 1)  # (t, h, w)
    pairs = (scores[:-1] + scores[1:]) / 2
    return (pairs / pairs.numel()).float()


def upsample_map(map_: Tensor, frames: int, size: int) -> Tensor:
    """Lay a map over its clip: each cell at the middle of what it sees, linear in between.

    Beyond the outermost middles it is constant. The values stay the cells' own: what is between two
    of them is their mean, and no longer adds up to the logit.

    Args:
        map_: float32 (T', h, w), as :func:`activation_map` gives it.
        frames: T of the clip.
        size: pixels of its sides.

    Returns:
        float32 (frames, size, size).

    Raises:
        UsageError: the map is not one of such a clip.
    """
    if frames < MIN_FRAMES or size < 1:
        raise UsageError(f"frames={frames}, size={size}: a clip has {MIN_FRAMES} frames or more")
    steps, cells = find_step_centers(frames), find_cell_centers(size)
    shape = (len(steps), len(cells), len(cells))
    if tuple(map_.shape) != shape:
        raise UsageError(
            f"map_ has shape {tuple(map_.shape)}; of a clip of {frames} frames of {size}x{size} "
            f"pixels it is {shape}"
        )
    small = map_.detach().cpu().float().numpy()
    in_time, in_space = _interpolation(steps, frames), _interpolation(cells, size)
    small = np.tensordot(in_time, small, 1)  # (T, T') x (T', h, w) -> (T, h, w)
    return torch.from_numpy(in_space @ small @ in_space.T)  # (size, h) x (T, h, w) x (w, size)


# --- what a cell sees -----------------------------------------------------------------------------


def find_cell_centers(size: int) -> np.ndarray:
    """Middle of what each of Mixed_5c's cells sees in a row of ``size`` pixels: (ceil(size / 32),).

    In pixels, of which the first is 0. At 224 it is 23 + 32 k, and not 15.5 + 32 k as of an even
    grid: TensorFlow pads more at the end than in front.
    """
    return _find_centers(size, axis=1)


def find_step_centers(frames: int) -> np.ndarray:
    """Middle of what each step of a map sees of ``frames`` frames: (ceil(frames / 8) - 1,).

    In frames, of which the first is 0. A step of a map is of two of Mixed_5c; where ``frames`` is a
    multiple of 8 its middle is 9 + 8 k.
    """
    centers = _find_centers(frames, axis=0)
    return (centers[:-1] + centers[1:]) / 2


def _find_centers(size: int, *, axis: int) -> np.ndarray:
    """Middle of what Mixed_5c's cells see along an axis of the clip (0: time, 1: space).

    Cell j of a layer of kernel k and stride s, with p in front, sees the cells s j - p to
    s j - p + k - 1 of the layer below, whose middle is s j + (k - 1) / 2 - p. So where cell i below
    is centred at ``scale i + shift`` of the clip, cell j is at

        scale s j + scale ((k - 1) / 2 - p) + shift

    p is that of SAME padding, which depends on the size of the layer below: a kernel of 3 at
    stride 2 has 0 in front of an even size and 1 in front of an odd one.
    """
    scale, shift = 1, 0.0
    for _, row in TABLE:
        if isinstance(row, Mixed):
            continue  # odd kernels at stride 1, in all branches: centred where they are
        kernel, stride = (
            (row.kernel, row.stride)
            if isinstance(row, Conv)
            else (row.kernel[axis], row.stride[axis])
        )
        front, _ = same_padding(size, kernel, stride)
        shift += scale * ((kernel - 1) / 2 - front)
        scale *= stride
        size = -(-size // stride)
    return scale * np.arange(size) + shift


def _interpolation(centers: np.ndarray, length: int) -> np.ndarray:
    """Share of each of n cells in each of ``length`` places: float32 (length, n)."""
    places = np.arange(length)
    shares = [np.interp(places, centers, unit) for unit in np.eye(len(centers))]
    return np.stack(shares, -1).astype(np.float32)


# --- what is asked for ----------------------------------------------------------------------------


def _find_class(model: I3D, class_: str | int) -> int:
    if isinstance(class_, str):
        names = ClassList("the network", model.classes)
        if (found := names.find(class_)) is not None:
            return found
        near = names.nearest(class_, count=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"class {class_!r} is none of the network's {len(names)}{hint}")
    try:
        index = operator.index(class_)
    except TypeError:
        raise UsageError(f"class {class_!r}: give its name or its index") from None
    if not 0 <= index < model.num_classes:
        raise UsageError(f"class {index}: the network's are 0 to {model.num_classes - 1}")
    return index


def _as_batch(model: I3D, clip: Tensor) -> Tensor:
    """The clip as (1, C, T, crop, crop)."""
    crop = find_preset(model.preset).crop
    channels = STREAM_CHANNELS[model.stream]
    wanted = f"float32 ({channels}, T, {crop}, {crop})"
    if not isinstance(clip, Tensor):
        raise UsageError(f"clip must be a tensor {wanted}, not {type(clip).__name__}")
    shape = tuple(clip.shape)
    given = f"{str(clip.dtype).removeprefix('torch.')} {shape}"
    batch = clip[None] if clip.ndim == 4 else clip
    if batch.ndim != 5 or len(batch) != 1 or batch.dtype != torch.float32:
        raise UsageError(f"clip is {given}; a map is of one clip, {wanted}")
    if batch.shape[1] != channels:
        raise UsageError(f"clip is {given}; the {model.stream} network takes {wanted}")
    if tuple(batch.shape[3:]) != (crop, crop):
        height, width = batch.shape[3:]
        raise UsageError(
            f"clip has pictures of {width}x{height} pixels; the network was made for {crop}x{crop}:"
            f" crop them, as i3d.{model.stream}_clip does"
        )
    if batch.shape[2] < MIN_FRAMES:
        raise UsageError(
            f"clip has {batch.shape[2]} frames; I3D needs at least {MIN_FRAMES}: repeat frames or "
            "sample a longer window"
        )
    return batch


@contextmanager
def _evaluating(model: I3D) -> Iterator[None]:
    """Evaluation mode; afterwards every layer is in the mode that it was in."""
    training = [layer for layer in model.modules() if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True
