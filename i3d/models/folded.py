"""The layers of the inference form: BatchNorm folded into convolutions, and a CPU's fast paths.

``I3D.fold`` puts them in the place of the layers that training has. They give those layers' numbers
to rounding, on any device, and may be differentiated, compiled and traced; what is faster where
nobody does so is chosen from call to call.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3d.models import winograd
from i3d.models.padding import pad_same, same_pads


class FoldedUnit(nn.Module):
    """Convolution with SAME padding, offset, ReLU: (B, in, T, H, W) -> (B, out, T', H', W').

    Args:
        conv: becomes this layer's: it takes BatchNorm's moving statistics in, in float64. Its
            filters lie in memory with their channels last afterwards, and so do then all
            activations: oneDNN needs no other order for them.
        bn: BatchNorm without a scale.
    """

    @torch.no_grad()
    def __init__(self, conv: nn.Conv3d, bn: nn.BatchNorm3d) -> None:
        super().__init__()
        mean, variance = bn.running_mean, bn.running_var
        assert mean is not None and variance is not None
        scale = (variance.double() + bn.eps).rsqrt()
        weight = conv.weight.double() * scale.view(-1, 1, 1, 1, 1)
        bias = bn.bias.double() - mean.double() * scale
        conv.weight = nn.Parameter(
            weight.to(conv.weight.dtype, memory_format=torch.channels_last_3d)
        )
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
        self.conv = conv
        self._time_filters: winograd.TimeFilters | None = None  # made where they are first needed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_time_filters": None}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve at the padding that ``x``'s size asks for, add the offset, clamp."""
        conv = self.conv
        by_onednn = _may_call_onednn(x)
        if by_onednn and winograd.pays(conv, x):
            pads = same_pads(x.shape[2:], conv.kernel_size, conv.stride)
            return winograd.convolve(x, conv, self._filters(), pads)
        x, padding = pad_same(x, conv.kernel_size, conv.stride)
        if by_onednn:
            return winograd.onednn_convolve(
                x, conv.weight, conv.bias, padding, conv.stride, relu=True
            )
        x = F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)
        return F.relu(x, inplace=not torch.is_grad_enabled())

    def _filters(self) -> winograd.TimeFilters:
        if self._time_filters is None or not self._time_filters.are_of(self.conv.weight):
            self._time_filters = winograd.time_filters(self.conv)
        return self._time_filters


class NeighbourMax(nn.Module):
    """Max pooling of 3x3x3 at stride 1 with SAME padding, as the blocks have it.

    Without a gradient it goes along one axis after the other, at the speed of the memory.
    """

    kernel, stride = (3, 3, 3), (1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), the largest of each element and its neighbours."""
        if x.device.type != "cpu" or not is_plain_inference():
            return F.max_pool3d(x, self.kernel, self.stride, 1)
        for axis in (4, 3, 2):
            x = _max_of_three(x, axis)
        return x


def _max_of_three(x: Tensor, axis: int) -> Tensor:
    """The maximum of each element and its neighbours along an axis."""
    inner = x.shape[axis] - 1
    before, after = x.narrow(axis, 0, inner), x.narrow(axis, 1, inner)
    result = torch.empty_like(x)
    torch.maximum(before, after, out=result.narrow(axis, 0, inner))
    result.select(axis, -1).copy_(x.select(axis, -1))
    last = result.narrow(axis, 1, inner)
    torch.maximum(last, before, out=last)
    return result


def is_plain_inference() -> bool:
    """Whether nobody needs a gradient or writes down what is computed."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but not in __all__
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or tracing)


def _may_call_onednn(x: Tensor) -> bool:
    """Whether oneDNN's own operator may be called, which has no gradient, nor a trace."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and is_plain_inference()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )
