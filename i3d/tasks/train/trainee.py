"""What is trained: the network, what of it is frozen, its optimizer and its average."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from i3d.models.format import Weights
from i3d.models.i3d import I3D, TABLE


class Trainee(nn.Module):
    """The network as it is trained: dropout comes from outside, so nothing in here is random."""

    def __init__(self, network: I3D) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor, kept: Tensor | None) -> Tensor:
        """Logits (B, num_classes).

        Args:
            clips: float32 (B, C, T, H, W).
            kept: dropout's factors, float32 (B, channels, T'); None for no dropout.
        """
        features = self.network.features(clips)
        return self.network.Logits(features if kept is None else features * kept)


def channels_last(network: I3D) -> I3D:
    """Lay the filters out in memory as `i3d.clips.scale_pixels` lays out the clips, in place.

    1x1x1 filters lie so already; to say it anew would give them strides that differ from those of
    their gradients, about which DistributedDataParallel warns.
    """
    for parameter in network.parameters():
        if parameter.ndim == 5 and parameter[0, 0].numel() > 1:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def features_shape(network: I3D, frames: int) -> tuple[int, int]:
    """Of one clip's features: (channels, T')."""
    return network.Logits.Conv3d_0c_1x1.in_channels, -(-frames // 8) - 1


def freeze(network: I3D, last: str | None) -> list[nn.Module]:
    """Take the layers up to the endpoint ``last`` out of training; returns them."""
    frozen: list[nn.Module] = []
    names = [name for name, _ in TABLE]
    for name in names[: 0 if last is None else names.index(last) + 1]:
        layer = network.get_submodule(name)
        layer.requires_grad_(False)
        frozen.append(layer)
    return frozen


def training_mode(network: I3D, frozen: list[nn.Module]) -> None:
    """Batch statistics in what is trained, moving ones, which stay as they are, in what is not."""
    network.train()
    for layer in frozen:
        layer.eval()


def make_optimizer(
    network: I3D,
    *,
    momentum: float | None,
    weight_decay: float,
    head_factor: float,
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW where momentum is None; learning rates are set at every step.

    Each group has a ``factor`` of the learning rate. Frozen parameters are in none.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = head_factor if name.startswith("Logits.") else 1.0
            decay = weight_decay if name.endswith("weight") else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    described = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if momentum is None:
        return torch.optim.AdamW(described, lr=0.0)
    return torch.optim.SGD(described, lr=0.0, momentum=momentum)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put a saved state in place; PyTorch itself compares little of it with the parameters.

    Raises:
        ValueError: it is of another optimizer or network; PyTorch has more kinds.
    """
    before = [_settings(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    loaded = [_settings(group) for group in optimizer.param_groups]
    # another version of PyTorch may have written more
    if any(b.items() - a.items() for a, b in zip(loaded, before, strict=True)):
        raise ValueError("its optimizer has other settings")
    parameters = {p for group in optimizer.param_groups for p in group["params"]}
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            shapes = (parameter.shape, torch.Size())  # a step's count has none
            if parameter not in parameters or getattr(value, "shape", None) not in shapes:
                raise ValueError(f"its optimizer's {name} fits no parameter")


def _settings(group: Mapping[str, Any]) -> dict[str, str]:
    """What a group of parameters has in common, as texts: NaN and tensors compare, too."""
    # the learning rate changes from step to step
    return {name: repr(value) for name, value in group.items() if name not in ("params", "lr")}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group its share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["factor"]


class Average:
    """Moving average of all weights and statistics.

    The decay rises to its value as in TensorFlow's ExponentialMovingAverage, min(decay,
    (1 + n) / (10 + n)) after n updates, so that a short run's average forgets where it began.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Take in the network after a step; ``updates`` were taken in before."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        ours, theirs = [], []
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                ours.append(self.tensors[name])
                theirs.append(tensor)
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved one."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def copy_weights(network: I3D, average: Average | None) -> Weights:
    """The network to validate and to keep, on the CPU: the average where there is one."""
    tensors = network.state_dict() if average is None else average.tensors
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return Weights(network.config, copies)
