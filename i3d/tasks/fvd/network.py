"""The network of a Fréchet Video Distance: clips -> features, with a record of its weights."""

import os
from collections.abc import Sequence

import click
import numpy as np
import torch
from torch import Tensor, nn

from i3d import files
from i3d.errors import CheckpointError, I3DError, UsageError
from i3d.models import format as own_format
from i3d.models.checkpoints import build, fingerprint, read_weights, resolve
from i3d.models.i3d import I3D
from i3d.tasks.fvd.protocols import Protocol
from i3d.tasks.fvd.statistics import Weights
from i3d.tasks.network import Precision, check_precision, find_batch_size, forward

DEFAULT_CHECKPOINT = "rgb_imagenet_kinetics400"


class Network:
    """A network in memory, as a protocol wants it.

    Args:
        checkpoint: name, path or URL; or an unfolded network, which is left as it is.
        protocol: says BatchNorm's epsilon, the endpoint and the size of the clips.
        device: ``cpu`` or ``cuda:N``.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        batch_size: clips at a time, halved if they do not fit; None finds what fits.
        progress: draw a progress bar while downloading, and say what is changed.

    Attributes:
        weights: what they are.
        dimensions: of the features.

    Raises:
        CheckpointError: it cannot be loaded, or is no RGB network.
        UsageError: an option has no meaning.
    """

    def __init__(
        self,
        checkpoint: files.Location | I3D,
        protocol: Protocol,
        *,
        device: str,
        precision: Precision = "fp32",
        batch_size: int | None = None,
        progress: bool = False,
    ) -> None:
        self.protocol, self.precision = protocol, check_precision(precision)
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch size {batch_size}: it must be at least 1, or auto")
        if isinstance(checkpoint, I3D):
            name, own = f"the {checkpoint.stream} network", checkpoint.bn_eps
            weights = checkpoint.weights()
        else:
            name = os.fspath(checkpoint)
            weights, own = _read(resolve(checkpoint, progress=progress), protocol.bn_eps)
        if weights.config.stream != "rgb":
            raise CheckpointError(f"{name} is a network for flow; FVD needs an RGB one")
        if own != protocol.bn_eps and progress:
            click.echo(
                f"warning: {name} has BatchNorm's epsilon {own:g}, and {protocol.name} says "
                f"{protocol.bn_eps:g}, which is used; --bn-eps {own:g} keeps its own",
                err=True,
            )
        weights = weights.with_config(bn_eps=protocol.bn_eps)
        self.weights = Weights(name, weights.config.source, fingerprint(weights))
        self._model = build(weights).fold().to(device)
        self._device = device
        logits = protocol.endpoint == "logits"
        head = self._model.Logits.Conv3d_0c_1x1
        self.dimensions = head.out_channels if logits else head.in_channels
        self._embed: nn.Module = self._model if logits else _Pooled(self._model)
        self.batch_size = batch_size or find_batch_size(
            self._model, frames=protocol.frames, crop=protocol.size, precision=self.precision
        )

    def embed(self, clips: Sequence[Tensor]) -> np.ndarray:
        """Features float32 (N, D) of clips float32 (T, size, size, 3) in 0..255.

        Raises:
            I3DError: one clip does not fit into the GPU's memory, or gives NaN.
        """
        done, rows = 0, []
        while done < len(clips):
            batch = clips[done : done + self.batch_size]
            try:
                stacked = torch.stack([c.to(self._device, non_blocking=True) for c in batch])
                # (B, T, S, S, 3) -> (B, 3, T, S, S), in the order of the reference's arithmetic
                scaled = stacked.permute(0, 4, 1, 2, 3).contiguous().mul_(2).div_(255).sub_(1)
                features = forward(self._embed, scaled, self.precision)
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise I3DError(
                        f"one clip of {self.protocol.frames} frames does not fit into the memory "
                        f"of {self._device}; use fewer --frames, or --device cpu"
                    ) from None
                self.batch_size = len(batch) // 2
                torch.cuda.empty_cache()
                continue
            rows.append(features.cpu().numpy())
            done += len(batch)
        return np.concatenate([np.zeros((0, self.dimensions), np.float32), *rows])


class _Pooled(nn.Module):
    """What the classifier is fed, averaged over time: (B, 3, T, H, W) -> (B, 1024)."""

    def __init__(self, model: I3D) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> Tensor:
        return self.model.features(clip).mean(2)  # (B, C, T') -> (B, C)


def _read(location: files.Location, bn_eps: float) -> tuple[own_format.Weights, float]:
    """Weights and their own epsilon, which a bare state dict takes from the protocol."""
    try:
        weights = read_weights(location, bn_eps=bn_eps)
    except UsageError:  # a format whose epsilon is known
        weights = read_weights(location)
    return weights, weights.config.bn_eps
