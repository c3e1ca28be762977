"""Fréchet Video Distance in torchmetrics' manner, for videos that are in memory."""

import io
import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from i3d import files
from i3d.errors import DatasetError, UsageError
from i3d.metrics.frechet import Moments
from i3d.models.i3d import I3D
from i3d.records import differences
from i3d.tasks.fvd.embedder import Embedder
from i3d.tasks.fvd.options import DEFAULT_CHECKPOINT, DEFAULT_PROTOCOL
from i3d.tasks.fvd.pixels import check_videos, protocol_clip, protocol_frames
from i3d.tasks.fvd.protocols import Protocol, change_protocol
from i3d.tasks.fvd.result import Result, Tally, compute_result
from i3d.tasks.fvd.statistics import Record, WeightsRecord, write_statistics
from i3d.tasks.network import choose_device
from i3d.tasks.options import ComputeOptions, Precision
from i3d.version import VERSION


class FewVideosWarning(UserWarning):
    """A distance of so few videos that it is mostly bias and noise."""


# --- in Python ------------------------------------------------------------------------------------


class FrechetVideoDistance:
    """FVD in torchmetrics' manner: ``update`` with batches, ``merge``, ``compute``.

        fvd = FrechetVideoDistance(protocol="stylegan-v")
        for real, fake in batches:        # uint8 (N, T, H, W, 3), of any size
            fvd.update(real, real=True)
            fvd.update(fake, real=False)
        fvd.compute()                     # 123.4
        print(fvd.result())               # the number and all that it depends on

    What it holds does not grow with the number of videos: mean and covariance in float64, 1.3 MB a
    set with 400 logits, or the rows while they are smaller than that.

    Args:
        checkpoint: name, path or URL (:func:`i3d.load`), or an unfolded RGB network.
        protocol: name of one of `PROTOCOLS`, or one that was changed.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        batch_size: clips at a time; None finds what fits.
        keep_features: keep every feature (1.6 to 3.2 kB a video), for `result` with kernel distance
            or curve.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is no RGB network.
        UsageError: an option has no meaning.
    """

    def __init__(
        self,
        checkpoint: files.Location | I3D = DEFAULT_CHECKPOINT,
        protocol: str | Protocol = DEFAULT_PROTOCOL,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        batch_size: int | None = None,
        keep_features: bool = False,
    ) -> None:
        self.protocol = change_protocol(protocol, {})
        options = ComputeOptions(precision, batch_size, device=device)
        self.network = Embedder(checkpoint, self.protocol, options, device=choose_device(device))
        self.keep_features = keep_features
        self.reset()

    def reset(self) -> None:
        """Forget all videos."""
        dimensions, keep = self.network.dimensions, self.keep_features
        self._sets = {real: Moments(dimensions, keep=keep) for real in (True, False)}

    def features(self, videos: "np.ndarray | torch.Tensor") -> np.ndarray:
        """The protocol's features of videos: float32 (N, D).

        Args:
            videos: uint8 (N, T, H, W, 3), RGB; the protocol's frames are taken from the first on.

        Raises:
            UsageError: another type or shape.
            DatasetError: fewer frames than the protocol needs, or features that are not finite.
        """

        def refuse(number: int, reason: str) -> None:
            raise DatasetError(f"videos[{number}]: {reason}")

        array = videos.cpu().numpy() if isinstance(videos, torch.Tensor) else np.asarray(videos)
        check_videos(array, "videos")
        clips = (
            (i, torch.from_numpy(protocol_clip(protocol_frames(v, self.protocol), self.protocol)))
            for i, v in enumerate(array)
        )
        empty = np.zeros((0, self.network.dimensions), np.float32)
        return np.concatenate([empty, *self.network.embed(clips, refuse)])

    def update(self, videos: "np.ndarray | torch.Tensor", real: bool = True) -> None:
        """Add a batch of videos to the real set or to the fake one; see `features`."""
        self.update_features(self.features(videos), real)

    def update_features(self, features: np.ndarray, real: bool = True) -> None:
        """Add features that `features` gave: float (N, D)."""
        self._sets[bool(real)].update(features)

    def merge(self, other: "FrechetVideoDistance | bytes") -> None:
        """Add what another one has seen, in this process or, as its `state`, in another.

        Raises:
            UsageError: its features were made in another way.
        """
        data = other.state() if isinstance(other, FrechetVideoDistance) else other
        about, theirs = unpack_moments(data)
        if different := differences(self._about, about, between=" and "):
            raise UsageError(f"features made in other ways do not merge: {'; '.join(different)}")
        for real, name in ((True, "real"), (False, "fake")):
            self._sets[real].merge(Moments.from_arrays(theirs[name], keep=self.keep_features))

    def state(self) -> bytes:
        """All that it has seen, for `merge` in another process; no pickle."""
        return pack_moments(self._about, {"real": self._sets[True], "fake": self._sets[False]})

    @property
    def _about(self) -> dict[str, Any]:
        weights, precision = self.network.weights.sha256, self.network.precision
        return {"weights": weights, "precision": precision, **self.protocol.settings}

    def compute(self) -> float:
        """The distance of the two sets, at least 0.

        Raises:
            DatasetError: a set has fewer than two videos.

        Warns:
            FewVideosWarning: a set has fewer than 256.
        """
        return self._compute(kvd=False, curve=False).value

    def result(self, *, kvd: bool = False, curve: bool = False) -> Result:
        """The distance with all that it depends on; errors and warnings as of `compute`.

        Args:
            kvd: compute the kernel distance too; needs ``keep_features``.
            curve: and how the distance falls with the number of videos; likewise.
        """
        return self._compute(kvd=kvd, curve=curve)

    def _compute(self, *, kvd: bool, curve: bool) -> Result:
        one, other = self._sets[True], self._sets[False]
        network = self.network
        result = compute_result(
            (one, other),
            (self._tally(True), self._tally(False)),
            self.protocol,
            network.weights,
            network.precision,
            kvd=kvd,
            points=curve,
        )
        if result.warning is not None:
            warnings.warn(FewVideosWarning(result.warning), stacklevel=3)
        return result

    def _tally(self, real: bool) -> Tally:
        count = self._sets[real].count
        return Tally(count, "array", count)

    def save_statistics(self, location: files.Location, real: bool = True) -> None:
        """Write one set's statistics to an ``.npz`` that `i3d fvd` takes in the set's place."""
        network, tally = self.network, self._tally(bool(real))
        record = make_record(self.protocol, network.weights, network.precision, tally)
        write_statistics(location, record, self._sets[bool(real)])


def make_record(protocol: Protocol, weights: WeightsRecord, precision: str, tally: Tally) -> Record:
    """What saved statistics say of a set."""
    return Record(
        protocol=protocol,
        weights=weights,
        precision=precision,
        origin=tally.origin,
        found=tally.found,
        left_out=tally.left_out,
        skipped=tally.skipped,
        damaged=tally.damaged,
        i3d=VERSION,
        arrays_sha256="",
    )


def pack_moments(about: Mapping[str, Any], sets: Mapping[str, Moments]) -> bytes:
    """Sets of features with what they are, for another process; no pickle."""
    arrays = {f"{s}/{k}": array for s, m in sets.items() for k, array in m.to_arrays().items()}
    buffer = io.BytesIO()
    about_bytes = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
    np.savez(buffer, about=about_bytes, **arrays)  # type: ignore[arg-type]  # savez's own flag
    return buffer.getvalue()


def unpack_moments(data: bytes) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """What `pack_moments` gave."""
    with np.load(io.BytesIO(data), allow_pickle=False) as z:
        about = json.loads(z["about"].tobytes())
        sets: dict[str, dict[str, np.ndarray]] = {}
        for name in z.files:
            if name != "about":
                side, _, key = name.partition("/")
                sets.setdefault(side, {})[key] = z[name]
    return about, sets
