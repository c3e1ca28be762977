"""Fréchet Video Distance: how far a set of generated videos is from a set of real ones.

    videos, shards, arrays --rank r: an equal part--> workers decode and resize as the protocol says
      --clips--> device: network --> features (N, D) --> Moments, of constant size
    all ranks --one gather--> rank 0: merge --> distance, with all that it depends on

Every video of both sets belongs to exactly one process. No process waits for another before the
end. A video that cannot be read, or is too short, is skipped with its reason.
"""

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import torch

import i3d
from i3d import files
from i3d.clips import Views
from i3d.console import progress_bar, show
from i3d.data.reading.clips import load_videos
from i3d.data.shards import Failure
from i3d.errors import UsageError
from i3d.metrics.frechet import Moments
from i3d.models.i3d import I3D
from i3d.parallel.ahead import check_shared_memory
from i3d.parallel.process import share_cores, terminated_cleanly
from i3d.parallel.world import World, connected, world_from_environment
from i3d.report.plot import check_plot
from i3d.tasks.fvd.network import DEFAULT_CHECKPOINT, Network
from i3d.tasks.fvd.protocols import DEFAULT_PROTOCOL, Protocol, changed
from i3d.tasks.fvd.result import Result, Videos, account, computed
from i3d.tasks.fvd.statistics import (
    Record,
    Weights,
    check_name,
    check_same,
    read_statistics,
    write_statistics,
)
from i3d.tasks.fvd.videos import (
    ClipSource,
    Contents,
    check_videos,
    opened,
    protocol_clip,
    protocol_frames,
)
from i3d.tasks.network import Precision, check_precision, choose_device

BYTES_A_PIXEL = 12  # of a clip: three float32


class FewVideosWarning(UserWarning):
    """A distance of so few videos that it is mostly bias and noise."""


# --- in Python ------------------------------------------------------------------------------------


class FrechetVideoDistance:
    """FVD in torchmetrics' manner: ``update`` with batches, ``merge``, ``compute``.

        fvd = FrechetVideoDistance("rgb_imagenet_kinetics400", "stylegan-v")
        for real, fake in batches:        # uint8 (N, T, H, W, 3), of any size
            fvd.update(real, real=True)
            fvd.update(fake, real=False)
        fvd.compute()                     # 123.4
        print(fvd.result())               # the number and all that it depends on

    What it holds does not grow with the number of videos: mean and covariance in float64, 1.3 MB a
    set with 400 logits, or the rows while they are smaller than that.

    Args:
        checkpoint: name, path or URL (:func:`i3d.load`), or an unfolded RGB network.
        protocol: name of one of `i3d.tasks.fvd.protocols.PROTOCOLS`, or one that was changed.
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
        self.protocol = changed(protocol, {})
        self.network = Network(
            checkpoint,
            self.protocol,
            device=choose_device(device),
            precision=precision,
            batch_size=batch_size,
        )
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
            DatasetError: fewer frames than the protocol needs.
        """
        array = videos.cpu().numpy() if isinstance(videos, torch.Tensor) else np.asarray(videos)
        check_videos(array, "videos")
        rows = [np.zeros((0, self.network.dimensions), np.float32)]
        size = self.network.batch_size
        for start in range(0, len(array), size):
            clips = [
                torch.from_numpy(protocol_clip(protocol_frames(v, self.protocol), self.protocol))
                for v in array[start : start + size]
            ]
            rows.append(self.network.embed(clips))
        return np.concatenate(rows)

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
        about, theirs = _unpacked(data)
        if about != self._about:
            different = [k for k, v in self._about.items() if about.get(k) != v]
            raise UsageError(f"features of another {', '.join(different)} cannot be merged")
        for real, name in ((True, "real"), (False, "fake")):
            self._sets[real].merge(Moments.from_arrays(theirs[name], keep=self.keep_features))

    def state(self) -> bytes:
        """All that it has seen, for `merge` in another process; no pickle."""
        return _packed(self._about, {"real": self._sets[True], "fake": self._sets[False]})

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
        return self._computed(kvd=False, curve=False).value

    def result(self, *, kvd: bool = False, curve: bool = False) -> Result:
        """The distance with all that it depends on; errors and warnings as of `compute`.

        Args:
            kvd: compute the kernel distance too; needs ``keep_features``.
            curve: and how the distance falls with the number of videos; likewise.
        """
        return self._computed(kvd=kvd, curve=curve)

    def _computed(self, *, kvd: bool, curve: bool) -> Result:
        one, other = self._sets[True], self._sets[False]
        network = self.network
        result = computed(
            (one, other),
            (self._videos(True), self._videos(False)),
            self.protocol,
            network.weights,
            network.precision,
            kvd=kvd,
            points=curve,
        )
        if result.warning is not None:
            warnings.warn(FewVideosWarning(result.warning), stacklevel=3)
        return result

    def _videos(self, real: bool) -> Videos:
        count = self._sets[real].count
        return Videos(count, "array", count)

    def save_statistics(self, location: files.Location, real: bool = True) -> None:
        """Write one set's statistics to an ``.npz`` that `i3d fvd` takes in the set's place."""
        network, videos = self.network, self._videos(bool(real))
        record = _record(self.protocol, network.weights, network.precision, videos)
        write_statistics(location, record, self._sets[bool(real)])


def _record(protocol: Protocol, weights: Weights, precision: str, videos: Videos) -> Record:
    return Record(
        protocol=protocol,
        weights=weights,
        precision=precision,
        origin=videos.origin,
        found=videos.found,
        left_out=videos.left_out,
        skipped=videos.skipped,
        i3d=i3d.__version__,
        arrays_sha256="",
    )


def _packed(about: Mapping[str, Any], sets: Mapping[str, Moments]) -> bytes:
    arrays = {f"{s}/{k}": array for s, m in sets.items() for k, array in m.to_arrays().items()}
    buffer = io.BytesIO()
    about_bytes = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(buffer, about=about_bytes, **arrays)  # type: ignore[arg-type]  # savez's own flag
    return buffer.getvalue()


def _unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as z:
        about = json.loads(z["about"].tobytes())
        sets: dict[str, dict[str, np.ndarray]] = {}
        for name in z.files:
            if name != "about":
                side, _, key = name.partition("/")
                sets.setdefault(side, {})[key] = z[name]
    return about, sets


# --- from files, by any number of processes -------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """How to compute; nothing here is part of a protocol.

    Attributes:
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        batch_size: clips at a time, of each process; None finds what fits.
        workers: processes that read and decode, of each process; None: its share of the cores; on a
            CPU two, or none if the share is two or less.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    precision: Precision = "fp32"
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers {self.workers}: it must be 0 or more")


def fvd(
    real: files.Location,
    fake: files.Location,
    *,
    checkpoint: files.Location | I3D = DEFAULT_CHECKPOINT,
    protocol: str | Protocol | None = None,
    changes: Mapping[str, Any] | None = None,
    options: Options = Options(),
    kvd: bool = False,
    curve: bool = False,
    save_statistics: files.Location | None = None,
    world: World | None = None,
    progress: bool = False,
) -> Result | None:
    """Distance of two sets of videos.

    Args:
        real: folder of videos or of shards; ``.npy`` or ``.npz`` with videos uint8
            (N, T, H, W, 3) or features float (N, D); or saved statistics; path or URL.
        fake: likewise.
        checkpoint: name, path or URL (:func:`i3d.load`), or an unfolded network.
        protocol: name, or a protocol; None: that of saved statistics, else google-2018.
        changes: settings of the protocol to replace, such as ``{"frames": 32}``.
        options: how to compute.
        kvd: also the kernel distance.
        curve: also how the distance falls with the number of videos.
        save_statistics: ``.npz`` file for the real set's statistics.
        world: this process's part of the work; default: from the launcher's environment.
        progress: draw a progress bar on process 0.

    Returns:
        the result on process 0; None on the others.

    Raises:
        DatasetError: a set cannot be understood, or fewer than two of its videos can be used.
        CheckpointError: the checkpoint cannot be loaded, or is no RGB network.
        UsageError: an option has no meaning, or the sets do not fit together.
        I3DError: the storage fails, a worker dies, or another process does.
    """
    measured = _measure(
        {"real": real, "fake": fake},
        checkpoint=checkpoint,
        protocol=protocol,
        changes=changes or {},
        options=options,
        keep=kvd or curve,
        save_statistics=save_statistics,
        world=world,
        progress=progress,
    )
    if measured is None:
        return None
    one, other = measured.sets
    result = computed(
        (one[0], other[0]),
        (one[1], other[1]),
        measured.protocol,
        measured.weights,
        measured.precision,
        kvd=kvd,
        points=curve,
    )
    if result.warning is not None and not progress:
        warnings.warn(FewVideosWarning(result.warning), stacklevel=2)
    return result


@dataclass(frozen=True)
class _Measured:
    """What process 0 knows in the end: the sets in their order, and what their features are."""

    sets: tuple[tuple[Moments, Videos], ...]
    protocol: Protocol
    weights: Weights | None
    precision: str


@dataclass(frozen=True)
class _Side:
    """A set before its videos are looked at; saved statistics are there at once."""

    name: str
    contents: Contents
    record: Record | None = None
    moments: Moments | None = None


def _measure(
    locations: Mapping[str, files.Location],
    *,
    checkpoint: files.Location | I3D,
    protocol: str | Protocol | None,
    changes: Mapping[str, Any],
    options: Options,
    keep: bool,
    save_statistics: files.Location | None,
    world: World | None,
    progress: bool,
) -> _Measured | None:
    """The moments of every set, on process 0; None on the others."""
    world = world_from_environment() if world is None else world
    if save_statistics is not None:
        check_name(save_statistics)
    device = choose_device(options.device, local_rank=world.local_rank)
    with ExitStack() as stack:
        sides = [
            _side(name, stack.enter_context(opened(location)))
            for name, location in locations.items()
        ]
        used = _protocol(sides, protocol, changes)
        sources = {
            side.name: ClipSource(side.contents.videos(used))
            for side in sides
            if side.record is None and not side.contents.is_features
        }
        network = None
        if sources:
            network = Network(
                checkpoint,
                used,
                device=device,
                precision=options.precision,
                batch_size=options.batch_size,
                progress=progress and world.first,
            )
        weights, precision = _agreed(sides, used, network, options)
        if save_statistics is not None and sides[0].name not in sources:
            raise UsageError("statistics are saved of the real set's videos; it has none")
        with connected(world) as group, terminated_cleanly():
            job = _Job(network, sources, used, world, keep=keep)
            job.run(options, device, progress=progress and world.first)
            gathered = group.gather(job.part())
            if not world.first:
                return None
        sets = tuple(_collected(side, sources.get(side.name), gathered, keep) for side in sides)
    if save_statistics is not None and weights is not None:
        moments, videos = sets[0]
        write_statistics(save_statistics, _record(used, weights, precision, videos), moments)
    return _Measured(sets, used, weights, precision)


def _side(name: str, contents: Contents) -> _Side:
    if not contents.is_statistics:
        return _Side(name, contents)
    record, moments = read_statistics(contents.arrays, contents.where)
    return _Side(name, contents, record, moments)


def _protocol(
    sides: Sequence[_Side], protocol: str | Protocol | None, changes: Mapping[str, Any]
) -> Protocol:
    """The one that was asked for, else that of saved statistics, else the default."""
    if protocol is None:
        protocol = next((s.record.protocol for s in sides if s.record), DEFAULT_PROTOCOL)
    return changed(protocol, changes)


def _agreed(
    sides: Sequence[_Side], used: Protocol, network: Network | None, options: Options
) -> tuple[Weights | None, str]:
    """Weights and precision of all sets; refuses sets that do not compare.

    Raises:
        UsageError: features beside videos or statistics; statistics made in another way.
    """
    given = [side for side in sides if side.contents.is_features]
    if given and len(given) < len(sides):
        raise UsageError(
            f"{given[0].contents.where} holds features of an unknown network; they compare with "
            "features alone: give an array of them for both sets"
        )
    records = [(side.record, side.contents.where) for side in sides if side.record]
    if network is not None:
        mine = _record(used, network.weights, network.precision, Videos(0, "", 0))
        records.insert(0, (mine, "what is asked for (--protocol, --checkpoint)"))
    elif records:
        first = records[0][0]
        mine = _record(used, first.weights, first.precision, Videos(0, "", 0))
        records.insert(0, (mine, "what is asked for (--protocol)"))
    else:
        return None, options.precision
    for record, where in records[1:]:
        check_same(records[0][0], record, (records[0][1], where))
    return mine.weights, mine.precision


def _collected(
    side: _Side, source: ClipSource | None, gathered: Sequence[bytes], keep: bool
) -> tuple[Moments, Videos]:
    """A set's moments from all processes, or from its file."""
    if side.record is not None and side.moments is not None:
        record, moments = side.record, side.moments
        return moments, Videos(
            moments.count, record.origin, record.found, record.skipped, record.left_out
        )
    if source is None:
        moments = Moments(side.contents.dimensions, keep=keep)
        for batch in side.contents.features():
            moments.update(batch)
        return moments, Videos(moments.count, "features", moments.count)
    whole: Moments | None = None
    skipped: list[Failure] = []
    for data in gathered:
        about, arrays = _unpacked(data)
        part = Moments.from_arrays(arrays[side.name], keep=keep)
        skipped += [Failure(source.keys[i], reason) for i, reason in about[side.name]]
        if whole is None:
            whole = part
        else:
            whole.merge(part)
    assert whole is not None
    found, planned = len(source.keys), whole.count + len(skipped)
    origin = source.videos.origin
    return whole, Videos(
        whole.count, origin, found, len(skipped), found - planned, tuple(sorted(skipped))
    )


class _Job:
    """This process's share of every set."""

    def __init__(
        self,
        network: Network | None,
        sources: Mapping[str, ClipSource],
        protocol: Protocol,
        world: World,
        *,
        keep: bool,
    ) -> None:
        self.network, self.sources, self.protocol, self.world = network, sources, protocol, world
        dimensions = 1 if network is None else network.dimensions
        self.moments = {name: Moments(dimensions, keep=keep) for name in sources}
        self.skipped: dict[str, list[tuple[int, str]]] = {name: [] for name in sources}

    def mine(self, name: str) -> range:
        """Which videos are this process's."""
        found, most = len(self.sources[name].keys), self.protocol.videos
        return self.world.share(found if most is None else min(found, most))

    def run(self, options: Options, device: str, *, progress: bool) -> None:
        """Look at them."""
        if self.network is None:
            return
        workers = _workers(options.workers, device, self.world)
        size = self.protocol.frames * self.protocol.size**2 * BYTES_A_PIXEL
        check_shared_memory(size, workers=workers, processes=self.world.local_size)
        total = sum(len(self.mine(name)) for name in self.sources)
        title = self.world.title("fvd")
        with progress_bar(title if progress else None, total=total, unit="videos") as bar:
            done = 0
            for name in self.sources:
                for _ in self._run(self.network, name, workers, pin=device.startswith("cuda")):
                    done += 1
                    bar.update(done)

    def _run(self, network: Network, name: str, workers: int, *, pin: bool) -> Iterator[None]:
        """Look at this process's part of a set; yields after every video."""
        source, mine = self.sources[name], self.mine(name)
        waiting: list[torch.Tensor] = []
        videos = load_videos(
            source,  # type: ignore[arg-type]  # it has no pictures to show
            mine,
            streams=("rgb",),
            views=Views(),
            workers=min(workers, len(mine)),
            pin=pin,
        )
        for video in videos:
            if video.error is not None:
                self.skipped[name].append((video.index, video.error))
            else:
                waiting.append(video.pixels["rgb"])
            if len(waiting) >= network.batch_size:
                self.moments[name].update(network.embed(waiting))
                waiting = []
            yield
        self.moments[name].update(network.embed(waiting))

    def part(self) -> bytes:
        """All that this process has to report."""
        return _packed(self.skipped, self.moments)


def _workers(workers: int | None, device: str, world: World) -> int:
    share = share_cores(device, world)
    if workers is not None:
        return workers
    return share if device != "cpu" else 2 if share > 2 else 0


@dataclass(frozen=True)
class Saved:
    """What a file of statistics is of."""

    location: str
    record: Record
    videos: Videos

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "statistics": self.location,
            "videos": self.videos.as_dict(),
            "protocol": asdict(self.record.protocol),
            "weights": asdict(self.record.weights),
            "precision": self.record.precision,
        }

    def __str__(self) -> str:
        record = self.record
        weights = f"{record.weights.name} (sha256 {record.weights.sha256[:12]})"
        lines = [f"{self.location}: {self.videos.used} videos, {record.protocol.name}, {weights}"]
        if self.videos.skipped or self.videos.left_out:
            lines.append(account("videos", self.videos))
        return "\n".join(lines)


def save_set(
    videos: files.Location,
    output: files.Location,
    *,
    checkpoint: files.Location | I3D = DEFAULT_CHECKPOINT,
    protocol: str | Protocol | None = None,
    changes: Mapping[str, Any] | None = None,
    options: Options = Options(),
    world: World | None = None,
    progress: bool = False,
) -> Saved | None:
    """Write one set's statistics, to be compared later; arguments and errors as of `fvd`."""
    measured = _measure(
        {"real": videos},
        checkpoint=checkpoint,
        protocol=protocol,
        changes=changes or {},
        options=options,
        keep=False,
        save_statistics=output,
        world=world,
        progress=progress,
    )
    if measured is None or measured.weights is None:
        return None
    used = measured.sets[0][1]
    record = _record(measured.protocol, measured.weights, measured.precision, used)
    return Saved(os.fspath(output), record, used)


def run(
    real: str,
    fake: str | None,
    *,
    checkpoint: str,
    protocol: str | None,
    changes: Mapping[str, Any],
    options: Options,
    kvd: bool,
    plot: str | None,
    save_statistics: str | None,
    output: str | None,
    strict: bool,
    as_json: bool,
) -> int:
    """``i3d fvd``: the exit code, 1 if with strict videos were skipped."""
    how: dict[str, Any] = {
        "checkpoint": checkpoint,
        "protocol": protocol,
        "changes": changes,
        "options": options,
        "progress": True,
    }
    if fake is None:
        if save_statistics is None or kvd or plot is not None or output is not None:
            raise UsageError("FAKE is missing; without it, --save-statistics alone is done")
        saved = save_set(real, save_statistics, **how)
        if saved is None:
            return 0
        show(saved, as_json=as_json)
        return 1 if strict and saved.videos.skipped else 0
    if plot is not None:
        check_plot(plot, suffix="png")
    result = fvd(
        real, fake, kvd=kvd, curve=plot is not None, save_statistics=save_statistics, **how
    )
    if result is None:
        return 0
    show(result, as_json=as_json)  # first: a file that cannot be written costs no figures
    if output is not None:
        text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n"
        files.write(output, text.encode())
    if plot is not None:
        from i3d.tasks.fvd.plot import plot_curve

        plot_curve(result, plot)
    for location in (output, plot, save_statistics):
        if location is not None:
            click.echo(f"wrote {location}", err=True)
    return 1 if strict and (result.real.skipped or result.fake.skipped) else 0
