"""Clips -> the features whose distance is measured, by the network that a protocol wants."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from i3d import files
from i3d.clips import scale_frames
from i3d.console import say
from i3d.errors import CheckpointError
from i3d.models.i3d import I3D
from i3d.tasks.fvd.protocols import Protocol
from i3d.tasks.fvd.statistics import WeightsRecord
from i3d.tasks.network import Batcher, Network, load_network
from i3d.tasks.options import ComputeOptions


class Embedder:
    """A network in memory, as a protocol wants it.

    Args:
        checkpoint: name, path or URL; or an unfolded network, which is left as it is.
        protocol: says BatchNorm's epsilon, the endpoint and the size of the clips.
        options: how to compute.
        device: ``cpu`` or ``cuda:N``.
        progress: draw a progress bar while downloading, and say what is changed.

    Attributes:
        weights: what made the features.
        dimensions: number of features.

    Raises:
        CheckpointError: it cannot be loaded, or is no RGB network.
    """

    def __init__(
        self,
        checkpoint: files.Location | I3D,
        protocol: Protocol,
        options: ComputeOptions,
        *,
        device: str,
        progress: bool = False,
    ) -> None:
        self.protocol, self.options, self.precision = protocol, options, options.precision
        self._network: Network = load_network(
            checkpoint,
            device=device,
            precision=options.precision,
            bn_eps=protocol.bn_eps,
            progress=progress,
        )
        used, own = self._network.used, self._network.own_bn_eps
        if self._network.stream != "rgb":
            raise CheckpointError(f"{used.name} is a network for flow; FVD needs an RGB one")
        if own != protocol.bn_eps and progress:
            say(
                f"warning: {used.name} has BatchNorm's epsilon {own:g}, and {protocol.name} says "
                f"{protocol.bn_eps:g}, which is used; --bn-eps {own:g} keeps its own"
            )
        self.weights = WeightsRecord(
            used.name, used.source, used.weights_sha256, self._network.released
        )
        head = self._network.model.Logits.Conv3d_0c_1x1
        logits = protocol.endpoint == "logits"
        self.dimensions: int = head.out_channels if logits else head.in_channels
        self._endpoint = "logits" if logits else "clip"

    def embed(
        self, clips: Iterable[tuple[int, torch.Tensor]], refuse: Callable[[int, str], None]
    ) -> Iterator[np.ndarray]:
        """Features float32 (n, D), batch by batch.

        Args:
            clips: numbers, and clips float32 (T, size, size, 3) in 0..255.
            refuse: told the number of a clip whose features are NaN or infinite, and the reason;
                they are left out.

        Raises:
            I3DError: one clip does not fit into the memory.
        """
        device = self._network.device
        batcher = Batcher(self._compute, self.options, device=device, frames=self.protocol.frames)
        for number, clip in clips:
            for numbers, rows in batcher.add(clip.to(device, non_blocking=True), number):
                yield self._keep(numbers, rows, refuse)
        for numbers, rows in batcher.finish():
            yield self._keep(numbers, rows, refuse)

    def _keep(
        self, numbers: Sequence[int], rows: np.ndarray, refuse: Callable[[int, str], None]
    ) -> np.ndarray:
        """The rows that are finite."""
        reasons = [self._network.explain_overflow(row) for row in rows]
        for number, reason in zip(numbers, reasons, strict=True):
            if reason is not None:
                refuse(number, reason)
        return rows[[reason is None for reason in reasons]]

    def _compute(self, clips: torch.Tensor) -> torch.Tensor:
        return self._network.compute(scale_frames(clips), self._endpoint)
