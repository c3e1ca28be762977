"""Fréchet Video Distance in torchmetrics' manner, for videos that are in memory."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed as dist

from i3d import files
from i3d.data.footage.options import FootageOptions, ValueRange
from i3d.errors import DatasetError, UsageError
from i3d.metrics.blocks import BlockMoments
from i3d.metrics.frechet import Moments
from i3d.models.i3d import I3D
from i3d.parallel.world import world_from_environment
from i3d.records import differences
from i3d.tasks.fvd.cutting import cut_every, cut_one
from i3d.tasks.fvd.embedder import Embedder
from i3d.tasks.fvd.options import DEFAULT_CHECKPOINT, DEFAULT_PROTOCOL, Beside
from i3d.tasks.fvd.packing import pack_arrays, unpack_arrays
from i3d.tasks.fvd.pixels import prepare_frames
from i3d.tasks.fvd.protocols import Protocol, change_protocol
from i3d.tasks.fvd.result import (
    Result,
    Tally,
    compute_result,
    describe_tally,
    make_record,
    warn_of,
)
from i3d.tasks.fvd.sets import MeasuredSet, measure_set
from i3d.tasks.fvd.statistics import write_statistics
from i3d.tasks.fvd.tensors import Layout, to_frames
from i3d.tasks.network import choose_device
from i3d.tasks.options import ComputeOptions, Precision, check_choice

COUNTS = ("videos", "found", "skipped", "left_out", "damaged", "drawn")
STATE = "i3d_fvd"  # the one entry of `FrechetVideoDistance.state_dict`
FRAMES_AT_ONCE = 512  # resized together


@dataclass
class _Set:
    """One set: what was added here, and what came from elsewhere as sums.

    Attributes:
        own: features that were added batch by batch.
        others: of other processes, and of folders.
        videos: number of videos.
        found: number of those in folders, with the ones below.
        skipped: number that could not be used.
        left_out: number beyond the protocol's.
        damaged: number of which something was lost.
        drawn: number of videos that were added batch by batch, for random clips.
        sizes: height and width of frames, each pair once.
        origins: kinds of sets.
    """

    own: BlockMoments
    others: list[Moments] = field(default_factory=list)
    videos: int = 0
    found: int = 0
    skipped: int = 0
    left_out: int = 0
    damaged: int = 0
    drawn: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    origins: set[str] = field(default_factory=set)

    def total(self) -> Moments:
        """All of it, in the order in which it came."""
        whole = self.own.total()
        for other in self.others:
            whole.merge(other)
        return whole

    def take(self, other: "_Set") -> None:
        """Add another one's videos."""
        self.others.append(other.total())
        for name in set(COUNTS) - {"drawn"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sizes |= other.sizes
        self.origins |= other.origins

    def tally(self, clips: int) -> Tally:
        """What became of the videos: all were used."""
        origin = "+".join(sorted(self.origins)) or "array"
        sizes = tuple(sorted(self.sizes))
        return Tally(
            self.videos,
            origin,
            self.videos + self.skipped + self.left_out,
            self.skipped,
            self.left_out,
            self.damaged,
            clips=clips,
            sizes=sizes,
        )


class FrechetVideoDistance:
    """FVD in torchmetrics' manner: ``update`` with batches, ``compute``, ``reset``.

        fvd = FrechetVideoDistance(
            protocol="stylegan-v", layout="NCTHW", value_range="-1..1", reset_real_features=False
        )
        fvd.update_from("folder of real videos")      # kept in the user's cache
        for step in ...:
            fvd.reset()                               # the generated ones
            for _ in range(2048 // batch):
                fvd.update(generator(noise), real=False)
            print(fvd.result())                       # the number and all that it depends on

    Videos stay on their device; they are resized, scaled and looked at on ``device``, where their
    features are added up in float64. What it holds does not grow with the number of videos: mean
    and covariance, 1.3 MB a set with 400 logits, or the rows while they are smaller than that. The
    number is the same for any batches.

    Under ``torch.distributed`` every process adds its own videos, and `compute` and `result` are of
    all of them, on every process, as torchmetrics' are; `sync` gathers them at other times.

    Args:
        checkpoint: name, path or URL (:func:`i3d.load`), or an unfolded RGB network.
        protocol: name of one of `PROTOCOLS`, or one that was changed.
        changes: settings of the protocol to replace, such as ``{"frames": 32}``.
        layout: axes of the videos: ``NTHWC``, ``NTCHW``, ``NCTHW``, or ``NTHW`` of gray ones.
        value_range: ``0..1``, ``-1..1`` or ``0..255`` of floats; uint8 needs none.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        batch_size: clips at a time; None finds what fits.
        keep_features: keep every feature (1.6 to 3.2 kB a video), for `result` with kernel distance
            or curve.
        reset_real_features: whether `reset` forgets the real videos, too.
        sync_on_compute: whether `compute` and `result` are of all processes.
        workers: processes that read the videos of `update_from`. Other than 0 they need the
            program to begin its work below ``if __name__ == "__main__":``, as PyTorch's do.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is no RGB network.
        UsageError: an option has no meaning.
    """

    higher_is_better = False

    def __init__(
        self,
        checkpoint: files.Location | I3D = DEFAULT_CHECKPOINT,
        protocol: str | Protocol = DEFAULT_PROTOCOL,
        *,
        changes: Mapping[str, Any] | None = None,
        layout: Layout = "NTHWC",
        value_range: ValueRange | None = None,
        device: str = "auto",
        precision: Precision = "fp32",
        batch_size: int | None = None,
        keep_features: bool = False,
        reset_real_features: bool = True,
        sync_on_compute: bool = True,
        workers: int = 0,
    ) -> None:
        check_choice("layout", layout, get_args(Layout))
        if value_range is not None:
            check_choice("value_range", value_range, get_args(ValueRange))
        self.protocol = change_protocol(protocol, changes or {})
        self.layout, self.value_range = layout, value_range
        self.device = torch.device(choose_device(device))
        self.keep_features, self.reset_real_features = keep_features, reset_real_features
        self.sync_on_compute = sync_on_compute
        self._options = ComputeOptions(precision, batch_size, workers, device=device)
        self._checkpoint = checkpoint
        self.network = Embedder(checkpoint, self.protocol, self._options, device=str(self.device))
        self._sets = {real: self._empty() for real in (True, False)}
        self._local: dict[bool, _Set] | None = None  # this process's, while all are gathered

    def _empty(self) -> _Set:
        return _Set(BlockMoments(self.network.dimensions, keep=self.keep_features))

    # --- videos ---

    def features(self, videos: "np.ndarray | torch.Tensor") -> np.ndarray:
        """The protocol's features of videos: float32 (N, D), of random clips those of a new set.

        Args:
            videos: uint8 or float, in the metric's layout and range, on any device.

        Raises:
            UsageError: another type or shape, or floats without a range.
            DatasetError: fewer frames than the protocol needs, values out of the range, or
                features that are not finite.
        """
        return self._embed(to_frames(videos, self.layout, self.value_range), first=0)

    def _embed(self, frames: torch.Tensor, *, first: int) -> np.ndarray:
        rows: list[np.ndarray] = [np.zeros((0, self.network.dimensions), np.float32)]
        for owners, found, reasons in self.network.embed(self._cut(frames, first)):
            for owner, reason in zip(owners, reasons, strict=True):
                if reason is not None:
                    raise DatasetError(f"videos[{owner}]: {reason}")
            rows.append(found[:, 0])
        return np.concatenate(rows)

    def _cut(self, videos: torch.Tensor, first: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The clips of videos (N, T, H, W, 3), which are the set's from number ``first`` on."""
        length = videos.shape[1]
        for i, video in enumerate(videos):
            try:
                if self.protocol.clips == "every" or length < self.protocol.frames_needed:
                    cuts = list(cut_every(length, self.protocol))
                else:
                    cuts = [cut_one(f"[{first + i}]", lambda: length, self.protocol)]
            except DatasetError as error:
                raise DatasetError(f"videos[{i}]: {error}") from None
            for numbers in cuts:
                yield i, self._prepare(video, numbers)

    def _prepare(self, video: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """One clip, on the network's device."""
        index = torch.tensor(numbers, device=video.device)
        parts = [
            prepare_frames(video.index_select(0, part).to(self.device), self.protocol)
            for part in index.split(FRAMES_AT_ONCE)
        ]
        return torch.cat(parts)

    def update(self, videos: "np.ndarray | torch.Tensor", real: bool = True) -> None:
        """Add a batch of videos to the real set or to the fake one; see `features`.

        If anything is wrong with a video, none of the batch is added.
        """
        side = self._own(real)
        frames = to_frames(videos, self.layout, self.value_range)
        side.own.append(self._embed(frames, first=side.drawn))
        side.drawn += len(frames)
        side.videos += len(frames)
        side.sizes.add((frames.shape[2], frames.shape[3]))
        side.origins.add("array")

    def update_features(self, features: np.ndarray, real: bool = True) -> None:
        """Add features that `features` gave: float (N, D)."""
        side = self._own(real)
        side.own.append(features)
        side.videos += len(features)
        side.origins.add("array")

    def update_from(
        self,
        location: files.Location,
        real: bool = True,
        *,
        footage: FootageOptions = FootageOptions(),
    ) -> None:
        """Add all videos of a folder or file, as `i3d fvd` takes them, or saved statistics.

        Their features are kept in the user's cache folder by protocol, weights and files, so that
        the next run has them at once. Under ``torch.distributed`` process 0 alone does it, and the
        others have them from `sync`.

        Args:
            location: path or URL.
            real: whether it is the real set.
            footage: what arrays of videos do not say themselves.

        Raises:
            DatasetError: fewer than two videos can be used, or the set cannot be understood.
            UsageError: saved statistics that were made otherwise, or features of unknown origin.
        """
        side = self._own(real)
        launched = world_from_environment().rank  # the process group may be made later
        if dist.get_rank() if dist.is_available() and dist.is_initialized() else launched:
            return
        measured: MeasuredSet = measure_set(
            location,
            embedder=self.network,
            footage=footage,
            options=self._options,
            device=str(self.device),
            keep=self.keep_features,
        )
        side.others.append(measured.moments[0])
        tally = measured.tally
        side.videos += tally.used
        side.found += tally.found
        side.skipped += tally.skipped
        side.left_out += tally.left_out
        side.damaged += tally.damaged
        side.sizes |= set(tally.sizes)
        side.origins.add(tally.origin)
        if tally.skipped:
            warnings.warn(describe_tally("real" if real else "fake", tally), stacklevel=2)

    def _own(self, real: bool) -> _Set:
        if self._local is not None:
            raise UsageError("the metric holds the videos of all processes; call unsync() first")
        if not isinstance(real, bool | np.bool_):
            raise UsageError(f"real={real!r}: it must be True or False")
        return self._sets[bool(real)]

    def reset(self) -> None:
        """Forget the generated videos, and with ``reset_real_features`` the real ones."""
        self.unsync()
        self._sets[False] = self._empty()
        if self.reset_real_features:
            self._sets[True] = self._empty()

    # --- other processes ---

    def merge(self, other: "FrechetVideoDistance | bytes") -> None:
        """Add what another one has seen, in this process or, as its `state`, in another.

        Raises:
            UsageError: its features were made in another way.
        """
        sets = self._read_state(other.state() if isinstance(other, FrechetVideoDistance) else other)
        for real, theirs in sets.items():
            self._own(real).take(theirs)

    def sync(self, group: "dist.ProcessGroup | None" = None) -> None:
        """Gather the videos of all processes of a group on each of them, until `unsync`.

        Args:
            group: process group; default: all of ``torch.distributed``'s.

        Raises:
            UsageError: no process group was made, or it was called already.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError("sync needs torch.distributed.init_process_group")
        if self._local is not None:
            raise UsageError("the metric holds the videos of all processes; call unsync() first")
        states = _gather(self.state(), group)
        whole = {real: self._empty() for real in (True, False)}
        for state in states:  # in the order of the ranks, on every one
            for real, theirs in self._read_state(state).items():
                whole[real].take(theirs)
        self._local, self._sets = self._sets, whole

    def unsync(self) -> None:
        """Go back to this process's own videos."""
        if self._local is not None:
            self._sets, self._local = self._local, None

    def state(self) -> bytes:
        """All that it has seen, for `merge` in another process; no pickle."""
        about: dict[str, Any] = {"made": self._about, "sets": {}}
        arrays: dict[str, np.ndarray] = {}
        for real, side in self._sets.items():
            name = "real" if real else "fake"
            about["sets"][name] = {
                "others": len(side.others),
                "counts": [getattr(side, name) for name in COUNTS],
                "sizes": sorted(side.sizes),
                "origins": sorted(side.origins),
            }
            for key, array in side.own.to_arrays().items():
                arrays[f"{name}|own|{key}"] = array
            for i, other in enumerate(side.others):
                for key, array in other.to_arrays().items():
                    arrays[f"{name}|{i}|{key}"] = array
        return pack_arrays(about, arrays)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that it has seen, for a training's checkpoint: `state` as one uint8 tensor."""
        return {STATE: torch.frombuffer(bytearray(self.state()), dtype=torch.uint8)}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            UsageError: it was made in another way, or is no state of this metric.
        """
        if STATE not in state_dict:
            raise UsageError(f"this state dict has no {STATE!r}; it is another metric's")
        state = state_dict[STATE]
        if not isinstance(state, torch.Tensor):
            raise UsageError(f"{STATE!r} is {type(state).__name__}, and no tensor of a state")
        self._sets, self._local = self._read_state(state.cpu().numpy().tobytes()), None

    def _read_state(self, data: bytes) -> dict[bool, _Set]:
        try:
            about, arrays = unpack_arrays(data)
            made, sets = about["made"], about["sets"]
        except Exception as error:  # a dozen kinds of zipfile's, NumPy's and json's
            raise UsageError(f"this is no state of a FrechetVideoDistance ({error})") from None
        if different := differences(self._about, made, between=" and "):
            raise UsageError(f"features made in other ways do not merge: {'; '.join(different)}")
        read = {}
        for real, name in ((True, "real"), (False, "fake")):
            what = sets[name]
            parts: dict[str, dict[str, np.ndarray]] = {str(i): {} for i in range(what["others"])}
            parts["own"] = {}
            for key, array in arrays.items():
                owner, part, rest = key.split("|")
                if owner == name:
                    parts[part][rest] = array
            own = BlockMoments.from_arrays(
                parts.pop("own"), self.network.dimensions, keep=self.keep_features
            )
            others = [Moments.from_arrays(part, keep=self.keep_features) for part in parts.values()]
            sizes = {(int(h), int(w)) for h, w in what["sizes"]}
            counts = dict(zip(COUNTS, what["counts"], strict=True))
            read[real] = _Set(own, others, **counts, sizes=sizes, origins=set(what["origins"]))
        return read

    @property
    def _about(self) -> dict[str, Any]:
        weights, precision = self.network.weights.sha256, self.network.precision
        return {"weights": weights, "precision": precision, **self.protocol.settings}

    # --- results ---

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
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        syncs = self.sync_on_compute and several and self._local is None
        if syncs:
            self.sync()
        try:
            one, other = self._sets[True].total(), self._sets[False].total()
            network = self.network
            result = compute_result(
                (one, other),
                (self._sets[True].tally(one.count), self._sets[False].tally(other.count)),
                self.protocol,
                network.weights,
                network.precision,
                Beside(kvd=kvd),
                points=curve,
            )
        finally:
            if syncs:
                self.unsync()
        warn_of(result, stacklevel=4)
        return result

    def save_statistics(self, location: files.Location, real: bool = True) -> None:
        """Write one set's statistics to an ``.npz`` that `i3d fvd` takes in the set's place."""
        network, side = self.network, self._sets[bool(real)]
        moments = side.total()
        tally = side.tally(moments.count)
        record = make_record(self.protocol, network.weights, network.precision, tally)
        write_statistics(location, record, moments)


def _gather(data: bytes, group: "dist.ProcessGroup | None") -> list[bytes]:
    """Every process's bytes on each of them, in the order of the ranks, as tensors: no pickle."""
    device = torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")
    count = dist.get_world_size(group)
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    size = torch.tensor([len(own)], dtype=torch.int64, device=device)
    sizes = [torch.zeros_like(size) for _ in range(count)]
    dist.all_gather(sizes, size, group=group)
    most = max(int(s) for s in sizes)
    padded = torch.zeros(most, dtype=torch.uint8, device=device)
    padded[: len(own)] = own
    parts = [torch.zeros_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded, group=group)
    return [part[: int(s)].cpu().numpy().tobytes() for part, s in zip(parts, sizes, strict=True)]
