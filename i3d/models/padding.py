"""TensorFlow's SAME padding, which follows the actual size of what is padded."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """SAME padding (front, back) of one axis; an odd total puts the extra one last.

    A 7-wide, stride 2 kernel pads an even size by (2, 3), an odd one by (3, 3). ``sym_max`` keeps
    the arithmetic symbolic when the network is exported.
    """
    total = torch.sym_max(((size + stride - 1) // stride - 1) * stride + kernel - size, 0)
    front = total // 2
    return front, total - front


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int]
) -> list[tuple[int, int]]:
    """SAME padding (front, back) of every axis."""
    return [same_padding(*axis) for axis in zip(sizes, kernel, stride, strict=True)]


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, list[int]]:
    """What (B, C, T, H, W) needs before a SAME convolution: itself, or a padded copy.

    Returns:
        The input, and the padding left to the convolution, which pads alike on both sides.
    """
    pads = same_pads(x.shape[2:], kernel, stride)
    if all(s == 1 for s in stride):  # odd kernels at stride 1 pad alike on both sides
        return x, [front for front, _ in pads]
    # F.pad starts at the last axis
    return F.pad(x, [p for pair in reversed(pads) for p in pair]), [0, 0, 0]
