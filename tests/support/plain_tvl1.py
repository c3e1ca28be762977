"""TV-L1 in plain PyTorch operations: the same algorithm on any device PyTorch has, slowly.

A witness for the kernels of `tvl1.cu`, and their stand-in where there is no GPU. Products and sums
that are rounded once, and roots, go through double precision, so this is the CPU's flow, too:
measured on 18 small pairs of three real clips, all identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from i3d.flow.cpu import FLOAT_EPSILON, PAD, scale_sizes, source_pixels
from i3d.flow.tvl1 import TVL1

PAIRS_AT_WORK = 32  # at 340x256; a pair needs about 60 MB there, most of it for the medians
MOST_FRAMES = 257


class BatchSolver:
    """Flow between many pairs of frames of one size; the interface of `gpu.BatchSolver`."""

    def __init__(self, height: int, width: int, parameters: TVL1, device: torch.device) -> None:
        self.parameters, self.device = parameters, device
        self.height, self.width = height, width
        self.most_frames = MOST_FRAMES
        self._together = max(1, PAIRS_AT_WORK * 340 * 256 // (height * width))

    @torch.no_grad()
    def flow(self, gray: np.ndarray | Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """float32 (P, H, W, 2) on the device, x then y, pixels.

        Args:
            gray: uint8 (N, H, W).
            pairs: P numbers of a first and a second frame.
        """
        pyramid = build_pyramid(torch.as_tensor(gray).to(self.device), self.parameters)
        numbers = torch.tensor(pairs, dtype=torch.long, device=self.device).reshape(-1, 2)
        flows = [
            solve(pyramid, part[:, 0], part[:, 1], self.parameters)
            for part in numbers.split(self._together)
        ]
        return torch.cat(flows) if flows else torch.empty(0, self.height, self.width, 2)


def open_solver(
    height: int, width: int, parameters: TVL1, device: str, most_frames: int | None = None
) -> BatchSolver:
    """In the place of `batch.open_solver`."""
    solver = BatchSolver(height, width, parameters, torch.device(device))
    solver.most_frames = most_frames or MOST_FRAMES
    return solver


class Scale(NamedTuple):
    """All frames at one scale.

    Attributes:
        image: float32 (N, H, W), gray in 0..255.
        taps: float32 (N, 3, H + 2 PAD, W + 2 PAD): I, dI/dx, dI/dy; zeros outside the image.
    """

    image: Tensor
    taps: Tensor


def build_pyramid(gray: Tensor, parameters: TVL1) -> list[Scale]:
    """uint8 (N, H, W) at every scale, the full size first."""
    image = gray.float()
    step = 1 / parameters.scale_step
    scales: list[Scale] = []
    for size in scale_sizes(gray.shape[1], gray.shape[2], parameters):
        if scales:
            image = resize(image, size, step, step)
        wide = functional.pad(image[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        along_x = 0.5 * (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2])
        along_y = 0.5 * (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1])
        taps = functional.pad(torch.stack([image, along_x, along_y], 1), (PAD,) * 4)
        scales.append(Scale(image, taps))
    return scales


def resize(images: Tensor, size: tuple[int, int], step_y: float, step_x: float) -> Tensor:
    """Bilinear without antialiasing, as cv2.resize: (..., h, w) to (..., H, W)."""
    for axis, (length, step) in zip((-1, -2), ((size[1], step_x), (size[0], step_y)), strict=True):
        sources = [source_pixels.py_func(i, step, images.shape[axis]) for i in range(length)]
        first, second = (
            torch.tensor([s[k] for s in sources], device=images.device) for k in range(2)
        )
        weight = torch.tensor([float(s[2]) for s in sources], device=images.device)
        weight = weight if axis == -1 else weight[:, None]
        a, b = images.index_select(axis, first), images.index_select(axis, second)
        images = fma(b - a, weight, a)
    return images


def solve(pyramid: list[Scale], first: Tensor, second: Tensor, parameters: TVL1) -> Tensor:
    """Flow float32 (P, H, W, 2) between the frames numbered ``first`` and ``second``."""
    u: Tensor | None = None
    for scale in reversed(pyramid):
        height, width = size = scale.image.shape[1:]
        if u is None:
            u = torch.zeros(len(first), 2, *size, device=scale.image.device)
        else:
            coarse_height, coarse_width = u.shape[2:]
            u = resize(u, (height, width), coarse_height / height, coarse_width / width)
            u *= 1 / parameters.scale_step
        p = torch.zeros(len(first), 2, 2, *size, device=u.device)  # (P, of u1 or u2, x or y, H, W)
        for _ in range(parameters.warps):
            data = warp(scale, first, second, u)
            moving = torch.arange(len(first), device=u.device)
            for _ in range(parameters.outer_iterations):
                part = u[moving], p[moving], data[moving]
                u[moving], p[moving], still = iterate(median(part[0]), *part[1:], parameters)
                moving = moving[~still]
                if len(moving) == 0:  # the one place where the host waits for the device
                    break
    assert u is not None
    return u.permute(0, 2, 3, 1).contiguous()


def warp(scale: Scale, first: Tensor, second: Tensor, u: Tensor) -> Tensor:
    """(P, 3, H, W): dI1/dx and dI1/dy at x + u, and I1 - IX u1 - IY u2 - I0."""
    height, width = u.shape[2:]
    row = torch.arange(height, device=u.device, dtype=torch.float32)[:, None]
    column = torch.arange(width, device=u.device, dtype=torch.float32)
    # positions that far outside read nothing but zeros
    px = (column + u[:, 0]).clamp(1 - PAD, width + 1)
    py = (row + u[:, 1]).clamp(1 - PAD, height + 1)
    left, top = px.floor(), py.floor()
    along_x, along_y = cubic_weights(px - left), cubic_weights(py - top)
    stride = width + 2 * PAD
    corner = (top.long() + PAD - 1) * stride + left.long() + PAD - 1
    taps = scale.taps[second].flatten(2)  # (P, 3, pixels)
    warped = torch.zeros(len(u), 3, height, width, device=u.device)
    for y in range(4):
        line = torch.zeros_like(warped)
        for x in range(4):
            at = (corner + y * stride + x).flatten(1)[:, None].expand(-1, 3, -1)
            line = fma(taps.gather(2, at).view_as(warped), along_x[x][:, None], line)
        warped = fma(line, along_y[y][:, None], warped)
    i1, ix, iy = warped.unbind(1)
    return torch.stack([ix, iy, i1 - ix * u[:, 0] - iy * u[:, 1] - scale.image[first]], 1)


def cubic_weights(t: Tensor) -> list[Tensor]:
    """Cubic convolution with a = -0.75: the weights of the pixels at -1, 0, 1, 2."""
    s = 1 - t
    w0, w3 = t * (s * s) * -0.75, s * (t * t) * -0.75
    w1 = fma(fma(t, 1.25, -2.25), t * t, 1.0)
    return [w0, w1, 1 - w0 - w1 - w3, w3]


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a b + c, rounded once (but for one in 2^29 that double precision rounds to a half)."""
    return (a.double() * b + c).float()


def median(u: Tensor) -> Tensor:
    """5x5 median of (P, 2, H, W); the border is repeated."""
    wide = functional.pad(u, (2, 2, 2, 2), mode="replicate")
    return wide.unfold(2, 5, 1).unfold(3, 5, 1).flatten(4).median(4).values


def iterate(u: Tensor, p: Tensor, data: Tensor, parameters: TVL1) -> tuple[Tensor, Tensor, Tensor]:
    """Up to ``inner_iterations`` iterations; the flow, the dual variables, which pairs are still.

    A pair that has come to rest is computed on but keeps its values.
    """
    ix, iy, rho0 = data[:, 0], data[:, 1], data[:, 2]
    square = ix * ix + iy * iy
    # as float32: PyTorch multiplies by a Python number in its own way
    step = torch.tensor(parameters.lambda_ * parameters.theta, device=u.device)
    theta = torch.tensor(parameters.theta, device=u.device)
    limit = step * square
    square = torch.where(square > float(FLOAT_EPSILON), square, torch.inf)
    gradient = torch.stack([ix, iy], 1)
    tau = torch.tensor(parameters.tau / parameters.theta, device=u.device)
    tolerance = parameters.epsilon**2 * ix.shape[1] * ix.shape[2]
    still = torch.zeros(len(u), dtype=torch.bool, device=u.device)
    for _ in range(parameters.inner_iterations):
        rho = rho0 + (ix * u[:, 0] + iy * u[:, 1])
        along = torch.where(rho > limit, step, torch.where(rho < -limit, -step, rho / square))
        left = functional.pad(p[:, :, 0, :, :-1], (1, 0))
        above = functional.pad(p[:, :, 1, :-1], (0, 0, 1, 0))
        divergence = (p[:, :, 0] - left) + (p[:, :, 1] - above)
        # OpenCV adds in another order in the first column
        divergence[..., 0] = (p[:, :, 0] + p[:, :, 1] - above)[..., 0]
        new = (u - along[:, None] * gradient) + theta * divergence
        change = ((new - u) ** 2).sum((1, 2, 3))
        # forward differences, none beyond the border
        grad_x = functional.pad(new[..., 1:] - new[..., :-1], (0, 1))
        grad_y = functional.pad(new[..., 1:, :] - new[..., :-1, :], (0, 0, 0, 1))
        grad = torch.stack([grad_x, grad_y], 2)
        norm = 1 + tau * torch.hypot(grad_x.double(), grad_y.double()).float()
        frozen = still[:, None, None, None]
        p = torch.where(frozen[..., None], p, (p + tau * grad) / norm[:, :, None])
        u = torch.where(frozen, u, new)
        still = still | (change <= tolerance)
    return u, p, still
