"""What is trained: the network that a run begins with, what of it is frozen, and its average."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from i3d import files
from i3d.data.reading.random_clips import TrainingSet
from i3d.errors import CheckpointError, UsageError
from i3d.models.checkpoints import build, read_weights, resolve
from i3d.models.foreign.inflate import inflate
from i3d.models.format import Weights
from i3d.models.i3d import I3D, TABLE

SCRATCH = "scratch"
INFLATE = "inflate:"


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
    """Lay the filters out in memory as `to_clips` lays out the clips, in place.

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


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        network: unfolded, on the CPU.
        new_head: whether its classifier starts from nothing.
        notes: what the user should know, a line each.
    """

    network: I3D
    new_head: bool
    notes: tuple[str, ...]


def initial_network(
    init: str, data: TrainingSet, *, width: float | None, seed: int, progress: bool = False
) -> Start:
    """Make the network that training begins with.

    Args:
        init: ``scratch``, a checkpoint's name, path or URL, or ``inflate:`` before the path or URL
            of a 2D Inception-v1 (:mod:`i3d.models.inflate`).
        data: says stream, classes and preset.
        width: of a network from scratch; None: 1.
        seed: of the weights that start from nothing.
        progress: draw a progress bar while downloading.

    Raises:
        CheckpointError: it cannot be read, or is for another stream or preset.
        UsageError: no such checkpoint; a width for one that has its own.
    """
    if init != SCRATCH and width is not None:
        raise UsageError(f"--width is for --init {SCRATCH}; {init} has its own")
    torch.manual_seed(seed)
    on = data.dataset.manifest.dataset
    fresh: dict[str, Any] = {
        "stream": data.stream,
        "classes": data.classes,
        "preset": data.preset.name,
    }
    if init == SCRATCH:
        network = I3D(**fresh, width=width or 1.0, source=f"i3d train on {on} from scratch")
        return Start(network, True, (f"{SCRATCH}: all weights start from nothing",))
    if init.startswith(INFLATE):
        name = init.removeprefix(INFLATE)
        weights = inflate(name, stream=data.stream)
        keep, why = _fitting_head(build(weights), data, name)
    else:
        name = init
        weights = read_weights(resolve(init, progress=progress))
        keep, why = _known_head(build(weights), data, name)
    width, bn_eps, origin = weights.config.width, weights.config.bn_eps, weights.config.source
    source = f"i3d train on {on} from {origin or name}"
    network = I3D(**fresh, width=width, bn_eps=bn_eps, source=source)
    kept = {k: t for k, t in weights.tensors.items() if keep or not k.startswith("Logits.")}
    network.load_state_dict(kept, strict=keep)
    return Start(network, not keep, (why,))


def _known_head(old: I3D, data: TrainingSet, name: str) -> tuple[bool, str]:
    """Whether a checkpoint's classifier can stay, and a line that says so."""
    if old.stream != data.stream:
        raise CheckpointError(f"{name} is a network for {old.stream}, not for {data.stream}")
    if old.preset != data.preset.name:
        raise CheckpointError(
            f"{name} was made for preset {old.preset}, and the shards for {data.preset.name}"
        )
    count = len(data.classes)
    if old.has_class_names and old.classes == data.classes:
        return True, f"{name}: the same {count} classes; its classifier is trained on"
    if not old.has_class_names and old.num_classes == count:
        return True, f"{name}: {count} classes without names, taken for those of the shards"
    return False, (
        f"{name}: its classifier of {old.num_classes} classes is replaced by a new one for the "
        f"shards' {count}"
    )


def _fitting_head(old: I3D, data: TrainingSet, name: str) -> tuple[bool, str]:
    count = len(data.classes)
    if old.num_classes == count:
        return True, (
            f"{name}: inflated, with its classifier: it has as many classes as the shards, {count}"
        )
    return False, (
        f"{name}: inflated; its classifier (fc) of {old.num_classes} classes is replaced by a new "
        f"one for the shards' {count}"
    )


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


def exported(network: I3D, average: Average | None) -> Weights:
    """The network to validate and to keep, on the CPU: the average where there is one."""
    tensors = network.state_dict() if average is None else average.tensors
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return Weights(network.config, copies)


class Stop:
    """Whether the user or the scheduler asked to stop.

    Attributes:
        requested: by Ctrl-C or SIGTERM; training looks after every step.
        at_once: raise KeyboardInterrupt instead, where there is nothing to finish.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """The first signal asks, the second one insists."""
        if self.at_once or self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM finish the step; outside the main thread they do what they did."""
    stop = Stop()
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop.handle)
    except ValueError:  # not the main thread: a library caller's business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_empty(folder: files.Location) -> bool:
    """Whether nothing is in a folder, or it is not there."""
    return not files.exists(os.fspath(folder)) or not files.names_in(folder)
