"""Clips -> the features whose distance is measured, by the network that a protocol wants."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

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

_Owner = TypeVar("_Owner")


class Embedder:
    """A network in memory, as a protocol wants it.

    Args:
        checkpoint: name, path or URL; or an unfolded network, which is left as it is.
        protocol: says BatchNorm's epsilon, the endpoint and the size of the clips.
        options: how to compute.
        device: ``cpu`` or ``cuda:N``.
        lengths: of further clips, the first frames of each, whose features are computed too.
        progress: draw a progress bar while downloading, and say what is changed.

    Attributes:
        lengths: frames of the clips, the protocol's own first.
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
        lengths: Sequence[int] = (),
        progress: bool = False,
    ) -> None:
        self.lengths = (protocol.frames, *lengths)
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
        self, clips: Iterable[tuple[_Owner, torch.Tensor] | None]
    ) -> Iterator[tuple[list[_Owner], np.ndarray, list[str | None]]]:
        """Features batch by batch: owners, float32 (n, K, D) and why a row cannot be used.

        K is the number of `lengths`. A row with NaN or infinity has a reason, the others None.

        Args:
            clips: what each row's owner is, and clips float32 (T, size, size, 3) in 0..255; None
                begins a new batch.

        Raises:
            I3DError: one clip does not fit into the memory.
        """
        device = self._network.device
        batcher = Batcher(self._compute, self.options, device=device, frames=self.protocol.frames)
        for item in clips:
            if item is None:
                done = batcher.flush()
            else:
                owner, clip = item
                done = batcher.add(clip.to(device, non_blocking=True), owner)
            yield from (self._explain(owners, rows) for owners, rows in done)
        yield from (self._explain(owners, rows) for owners, rows in batcher.finish())

    def _explain(
        self, owners: list[_Owner], rows: np.ndarray
    ) -> tuple[list[_Owner], np.ndarray, list[str | None]]:
        return owners, rows, [self._network.explain_overflow(row) for row in rows]

    def _compute(self, clips: torch.Tensor) -> torch.Tensor:
        # On a CPU a batch gains nothing, and the classifier's sums depend on its size.
        parts = clips.split(1) if clips.device.type == "cpu" else [clips]
        return torch.cat([self._compute_lengths(scale_frames(part)) for part in parts])

    def _compute_lengths(self, clips: torch.Tensor) -> torch.Tensor:
        rows = [self._network.compute(clips[:, :, :n], self._endpoint) for n in self.lengths]
        return torch.stack(rows, 1)
