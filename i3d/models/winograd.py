"""Convolution with half the multiplications over time: Winograd's minimal filtering, on a CPU.

Four neighbouring output frames of a filter of r taps over time are sums of r 2D convolutions each,
4 r in all. The algorithm makes them from r + 3 (Lavin and Gray, arXiv 1509.09308, who use it over
space):

    r + 3 frames d  ->  sums of them, B d  ->  2D convolutions of these by filters G g, m
                    ->  sums of those, A m  =  4 output frames

The sums cost little beside the convolutions, so that 3 taps take about 0.6 of the time. So do the
first layer's 7 taps at stride 2, taken as 4 taps on pairs of frames: 7 convolutions of pairs
instead of 28 of frames. The result is the plain convolution's but for rounding: in float32 the
error of a layer is about twice as large (with oneDNN's kernels for AVX2 and AVX-512).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4  # output frames made together

# Where the polynomials behind the algorithm are evaluated, infinity apart. Of the small fractions
# these had about the least float32 error on random data.
POINTS = {
    3: (0.0, 1.0, -1.0, 0.5, -2.0),
    4: (0.0, 1.0, -1.0, 0.5, 2.0, -1.5),
}
BIAS_POINT = 1  # POINTS[...][1] is 1: what is added to that product is added to every output frame

# When it is faster than oneDNN's 3D convolution; measured on two cores with AVX-512.
MIN_CHANNELS = 32  # with fewer input channels the 2D convolutions are as cheap as the sums
MIN_POSITIONS = 2048  # with fewer outputs a channel, reading six sets of filters takes the time
MIN_OPERATIONS = 7e8  # with fewer, as the plain sum needs them, the calls take the time
CHUNK_BYTES = 64 << 20  # of 2D convolutions' results held at a time


@dataclass(frozen=True)
class TimeFilters:
    """A 3D convolution's filters, ready for :func:`convolve`.

    Attributes:
        planes: filters (O, C, height, width) of a 2D convolution for each sum of frames.
        taps: r.
        source: 3D filters they were made of.
        version: number of changes of those until then.
    """

    planes: tuple[Tensor, ...]
    taps: int
    source: Tensor
    version: int

    def are_of(self, weight: Tensor) -> bool:
        """Whether they were made of these filters, as they are now."""
        return (
            self.source.data_ptr() == weight.data_ptr()
            and self.source.dtype == weight.dtype
            and self.version == _version(weight)
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@cache
def transforms(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices A (4, r + 3), G (r + 3, r) and B (r + 3, r + 3), float64, of r taps.

    The correlation y[i] = sum_k g[k] d[i + k] is the transpose of a product of polynomials, which
    is fixed by its values at r + 2 points and its highest coefficient (Toom and Cook). A row of B
    and the same of G may be scaled against each other: by a power of two, which is exact.
    """
    points = np.array(POINTS[taps])

    def values(columns: int) -> np.ndarray:
        """Of the powers 0, 1, ... at the points, and their highest coefficient."""
        return np.vstack([np.vander(points, columns, increasing=True), np.eye(columns)[-1]])

    b = np.linalg.inv(values(len(points) + 1)).T
    scale = 2.0 ** np.round(np.log2(np.abs(b).max(axis=1, keepdims=True)))
    return values(TILE).T, values(taps) * scale, b / scale


def pays(conv: nn.Conv3d, x: Tensor) -> bool:
    """Whether a convolution of inputs (B, C, T, H, W) can be done this way, and faster."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if (kernel, stride) != (3, 1):
        return (kernel, stride) == (7, 2)
    frames = x.shape[2]
    positions = x.numel() // conv.in_channels
    return (
        conv.in_channels >= MIN_CHANNELS
        and positions >= MIN_POSITIONS
        and 2 * positions * conv.weight.numel() >= MIN_OPERATIONS
        and 6 * _tiles(frames) < 0.85 * 3 * frames  # a rest of a tile takes as long as a tile
    )


def _tiles(frames: int) -> int:
    return -(-frames // TILE)


@torch.no_grad()
def time_filters(conv: nn.Conv3d) -> TimeFilters:
    """Transform filters (O, C, 3, 3, 3) at stride 1 or (O, C, 7, 7, 7) at stride 2, in float64."""
    weight = conv.weight.double()
    if conv.stride[0] == 2:  # pairs of frames become channels: (O, 2 C, 4, 7, 7)
        weight = F.pad(weight, (0, 0, 0, 0, 0, 1))
        weight = weight.unflatten(2, (4, 2)).permute(0, 3, 1, 2, 4, 5).flatten(1, 2)
    taps = weight.shape[2]
    planes = tuple(
        torch.einsum("r,ocrhw->ochw", row, weight).to(
            conv.weight.dtype, memory_format=torch.channels_last
        )
        for row in torch.from_numpy(transforms(taps)[1])
    )
    return TimeFilters(planes, taps, conv.weight.detach(), _version(conv.weight))


def convolve(
    x: Tensor, conv: nn.Conv3d, filters: TimeFilters, pads: Sequence[tuple[int, int]]
) -> Tensor:
    """Convolution, bias and ReLU: float32 (B, C, T, H, W) -> (B, O, T', H', W'), channels last.

    Args:
        x: input.
        conv: the convolution, with a bias.
        filters: :func:`time_filters` of it.
        pads: zeros (front, back) of each axis, as SAME padding wants them.
    """
    stride = conv.stride[0]
    frames = -(-x.shape[2] // stride)
    if stride == 2:
        x, before, padding = _pairs(x, pads, frames), 0, [0, 0]
    else:
        x = x.permute(0, 2, 3, 4, 1).contiguous()
        before, *padding = (front for front, _ in pads)
    tiles = _tiles(frames)
    a, _, b = (torch.from_numpy(matrix).to(x.dtype) for matrix in transforms(filters.taps))
    first_plane, size = filters.planes[0], len(filters.planes)
    height, width = (
        (n + 2 * p - k) // stride + 1
        for n, p, k in zip(x.shape[2:4], padding, first_plane.shape[2:], strict=True)
    )
    result = x.new_empty((x.shape[0] * tiles, TILE, height, width, conv.out_channels))
    chunks = -(-size * result[:, 0].numel() * x.element_size() // CHUNK_BYTES)
    length = -(-len(result) // chunks)
    sums = x.new_empty((size, length, *x.shape[2:]))
    products = x.new_empty((length, size, *result.shape[2:]))
    for start in range(0, len(result), length):
        made = result[start : start + length]
        count = len(made)
        for i in range(count):
            sample, tile = divmod(start + i, tiles)
            first = tile * TILE - before
            begin, end = max(0, first), min(x.shape[1], first + size)  # the others are zero
            into = sums[:, i].flatten(1)
            torch.mm(b[:, begin - first : end - first], x[sample, begin:end].flatten(1), out=into)
        for j, plane in enumerate(filters.planes):
            bias = conv.bias if j == BIAS_POINT else None
            product = onednn_convolve(
                sums[j, :count].permute(0, 3, 1, 2), plane, bias, padding, [stride] * 2
            )
            products[:count, j] = product.permute(0, 2, 3, 1)
        torch.bmm(a.expand(count, -1, -1), products[:count].flatten(2), out=made.flatten(2))
        made.relu_()
    result = result.view(x.shape[0], tiles * TILE, *result.shape[2:])
    return result[:, :frames].permute(0, 4, 1, 2, 3)


def onednn_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    *,
    relu: bool = False,
) -> Tensor:
    """2D or 3D convolution by the operator that torch.compile uses.

    It takes the order in memory that it is given, and clamps its result while in registers.
    """
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        *(x, weight, bias, padding, stride, [1] * len(stride), 1),
        *("relu" if relu else "none", [], ""),
    )
    return result


def _pairs(x: Tensor, pads: Sequence[tuple[int, int]], frames: int) -> Tensor:
    """Padded frames two by two: (B, C, T, H, W) -> (B, frames + 3, H', W', 2 C)."""
    batch, channels, _, height, width = x.shape
    (before, _), (top, bottom), (left, right) = pads
    shape = (batch, frames + 3, top + height + bottom, left + width + right, 2, channels)
    result = x.new_zeros(shape)
    inside = result[:, :, top : top + height, left : left + width]
    for slot in range(2):
        first = (slot - before) % 2  # the first frame that has this place in its pair
        own = x[:, :, first::2].permute(0, 2, 3, 4, 1)
        pair = (first + before) // 2
        inside[:, pair : pair + own.shape[1], :, :, slot] = own
    return result.flatten(4)
