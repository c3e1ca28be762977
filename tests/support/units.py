"""Single layers in their inference form."""

import copy

import torch

from i3d.models.folded import FoldedUnit
from i3d.models.i3d import Unit3D


def unit(channels=(48, 24), kernel=3, stride=1, seed=0) -> FoldedUnit:
    """A folded layer with filters like a trained one's, and a bias."""
    torch.manual_seed(seed)
    layer = Unit3D(*channels, kernel, stride, bn_eps=1e-3).eval()
    torch.nn.init.normal_(layer.conv.weight, std=(channels[0] * kernel**3) ** -0.5)
    torch.nn.init.normal_(layer.bn.bias)
    return layer.fold().requires_grad_(False)


def exact(layer, x):
    """SAME convolution and ReLU in double precision, by PyTorch."""
    return copy.deepcopy(layer).double()(x.double())
