"""Fréchet Video Distance: how far a set of generated videos is from a set of real ones.

    videos, shards, arrays --rank r: an equal part--> workers decode and resize as the protocol says
      --clips--> device: network --> features (N, D) --> sums of constant size
    all ranks --one gather--> rank 0: merge --> distance, with all that it depends on

Every video of both sets belongs to exactly one process. No process waits for another before the
end. A video that cannot be read, or is too short, is skipped with its reason.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from i3d import files
from i3d.console import say_written, show
from i3d.data.footage.opening import Opened, check_options, open_footage
from i3d.data.footage.options import FootageOptions
from i3d.data.shards import Failure
from i3d.errors import UsageError
from i3d.metrics.frechet import Moments
from i3d.models.i3d import I3D
from i3d.parallel.process import terminated_cleanly
from i3d.parallel.world import World, connect, world_from_environment
from i3d.report.plot import check_plot
from i3d.tasks.fvd.clip_sets import (
    ClipSet,
    feature_batches,
    given_features,
    is_statistics,
)
from i3d.tasks.fvd.embedder import Embedder
from i3d.tasks.fvd.feature_cache import FeatureCache, drop_oldest
from i3d.tasks.fvd.measuring import SetMeasurer, SetRows, unpack_sets
from i3d.tasks.fvd.options import (
    DEFAULT_CHECKPOINT,
    DEFAULT_PROTOCOL,
    Changes,
    FvdOutputs,
    Measure,
)
from i3d.tasks.fvd.protocols import Protocol, change_protocol
from i3d.tasks.fvd.result import (
    Damaged,
    FewVideosWarning,
    Result,
    Tally,
    compute_result,
    describe_tally,
    make_record,
)
from i3d.tasks.fvd.statistics import (
    Record,
    WeightsRecord,
    check_name,
    check_same,
    read_statistics,
    write_statistics,
)
from i3d.tasks.network import choose_device
from i3d.tasks.options import ComputeOptions

MAX_KEPT_BYTES = 1 << 34  # 5 million videos with 400 logits


def fvd(
    real: files.Location,
    fake: files.Location,
    *,
    checkpoint: files.Location | I3D = DEFAULT_CHECKPOINT,
    protocol: str | Protocol | None = None,
    changes: Mapping[str, Any] | None = None,
    footage: FootageOptions = FootageOptions(),
    options: ComputeOptions = ComputeOptions(),
    kvd: bool = False,
    curve: bool = False,
    save_statistics: files.Location | None = None,
    cache: bool = True,
    world: World | None = None,
    progress: bool = False,
) -> Result | None:
    """Distance of two sets of videos.

    Args:
        real: videos, as files, pictures or arrays, in folders or archives; shards; features
            float (N, D); or saved statistics (docs/fvd.md lists them all); path or URL.
        fake: the other set, given in the same ways.
        checkpoint: name, path or URL (:func:`i3d.load`), or an unfolded network.
        protocol: name, or a protocol; None: that of saved statistics, else google-2018.
        changes: settings of the protocol to replace, such as ``{"frames": 32}``.
        footage: what arrays of videos do not say themselves.
        options: how to compute.
        kvd: also the kernel distance.
        curve: also how the distance falls with the number of videos.
        save_statistics: ``.npz`` file for the real set's statistics.
        cache: keep features in the user's cache folder, and take those that are there: a job that
            was killed goes on, and a set is measured once.
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
        footage=footage,
        options=options,
        keep=kvd or curve,
        save_statistics=save_statistics,
        cache=cache,
        world=world,
        progress=progress,
    )
    if measured is None:
        return None
    one, other = measured.sets
    result = compute_result(
        (one.moments[0], other.moments[0]),
        (one.tally, other.tally),
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
class Saved:
    """A file of statistics, and what it holds.

    Attributes:
        location: path or URL.
        record: how its features were made.
        tally: what became of the videos.
    """

    location: str
    record: Record
    tally: Tally

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "statistics": self.location,
            "videos": self.tally.as_dict(),
            "protocol": asdict(self.record.protocol),
            "weights": asdict(self.record.weights),
            "precision": self.record.precision,
        }

    def __str__(self) -> str:
        record = self.record
        weights = f"{record.weights.name} (sha256 {record.weights.sha256[:12]})"
        lines = [f"{self.location}: {self.tally.used} videos, {record.protocol.name}, {weights}"]
        if self.tally.is_partial:
            lines.append(describe_tally("videos", self.tally))
        return "\n".join(lines)


def save_set(
    videos: files.Location,
    output: files.Location,
    *,
    checkpoint: files.Location | I3D = DEFAULT_CHECKPOINT,
    protocol: str | Protocol | None = None,
    changes: Mapping[str, Any] | None = None,
    footage: FootageOptions = FootageOptions(),
    options: ComputeOptions = ComputeOptions(),
    cache: bool = True,
    world: World | None = None,
    progress: bool = False,
) -> Saved | None:
    """Write one set's statistics, to be compared later; arguments and errors as of `fvd`."""
    measured = _measure(
        {"real": videos},
        checkpoint=checkpoint,
        protocol=protocol,
        changes=changes or {},
        footage=footage,
        options=options,
        keep=False,
        save_statistics=output,
        cache=cache,
        world=world,
        progress=progress,
    )
    if measured is None or measured.weights is None:
        return None
    tally = measured.sets[0].tally
    record = make_record(measured.protocol, measured.weights, measured.precision, tally)
    return Saved(os.fspath(output), record, tally)


@dataclass(frozen=True)
class MeasuredSet:
    """A set after its videos were looked at.

    Attributes:
        moments: the features' at each length of clips, the protocol's first.
        tally: what became of the videos.
        keys: the video of each row, where rows are kept.
    """

    moments: tuple[Moments, ...]
    tally: Tally
    keys: tuple[str, ...] = ()


def measure_set(
    videos: files.Location,
    *,
    embedder: Embedder,
    options: ComputeOptions,
    device: str,
    keep: bool,
    world: World,
    footage: FootageOptions = FootageOptions(),
) -> MeasuredSet:
    """One set by a network that is loaded, in this process alone; features are kept.

    Raises:
        DatasetError: the set cannot be understood.
        UsageError: features of an unknown network, or statistics that were made otherwise.
    """
    with ExitStack() as stack:
        side = _open("real", videos, footage, stack)
        check_options([side.contents], footage)
        if side.features is not None:
            raise UsageError(
                f"{side.contents.where} holds features of an unknown network; add them with "
                "update_features"
            )
        _agree([side], embedder.protocol, embedder, options)
        if side.record is not None:
            return _collect(side, None, [], keep)
        assert side.contents.footage is not None
        clips = ClipSet(side.contents.footage, embedder.protocol)
        job = SetMeasurer(
            embedder,
            {side.name: clips},
            cache=FeatureCache(embedder, device),
            world=world,
            keep=keep,
        )
        job.run(options, device, progress=False)
        drop_oldest()
        return _collect(side, clips, [job.sets], keep)


# --- the sets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """A set before its videos are looked at; features and saved statistics are there at once.

    Attributes:
        name: real or fake.
        contents: what its location holds.
        record: how saved statistics were made; None for other sets.
        moments: saved statistics; None for other sets.
    """

    name: str
    contents: Opened
    record: Record | None = None
    moments: Moments | None = None

    @property
    def features(self) -> np.ndarray | None:
        """Features float (N, D) that were given; None for other sets."""
        return given_features(self.contents)


@dataclass(frozen=True)
class _Measured:
    """What process 0 knows in the end: the sets in their order, and how features were made."""

    sets: tuple[MeasuredSet, ...]
    protocol: Protocol
    weights: WeightsRecord | None
    precision: str


def _measure(
    locations: Mapping[str, files.Location],
    *,
    checkpoint: files.Location | I3D,
    protocol: str | Protocol | None,
    changes: Mapping[str, Any],
    footage: FootageOptions,
    options: ComputeOptions,
    keep: bool,
    save_statistics: files.Location | None,
    cache: bool,
    world: World | None,
    progress: bool,
    lengths: Sequence[int] = (),
) -> _Measured | None:
    """The moments of every set, on process 0; None on the others."""
    world = world_from_environment() if world is None else world
    progress = progress and world.first
    if save_statistics is not None:
        check_name(save_statistics)
    device = choose_device(options.device, world)
    with ExitStack() as stack:
        sides = [_open(name, location, footage, stack) for name, location in locations.items()]
        check_options([side.contents for side in sides], footage)
        used = _choose_protocol(sides, protocol, changes)
        clips = {
            side.name: ClipSet(side.contents.footage, used)
            for side in sides
            if side.contents.footage is not None
        }
        embedder = None
        if clips:
            embedder = Embedder(
                checkpoint, used, options, device=device, lengths=lengths, progress=progress
            )
        weights, precision = _agree(sides, used, embedder, options)
        if save_statistics is not None and sides[0].name not in clips:
            raise UsageError("statistics are saved of the real set's videos; it has none")
        with connect(world) as group, terminated_cleanly():
            gathered: list[dict[str, SetRows]] = []
            if embedder is not None:
                kept = FeatureCache(embedder, device) if cache else None
                job = SetMeasurer(embedder, clips, cache=kept, world=world, keep=keep)
                job.run(options, device, progress=progress)
                gathered = [unpack_sets(part, keep=keep) for part in group.gather(job.part())]
            if cache and world.local_rank == 0:
                drop_oldest()
            if not world.first:
                return None
        sets = tuple(_collect(side, clips.get(side.name), gathered, keep) for side in sides)
    if save_statistics is not None and weights is not None:
        record = make_record(used, weights, precision, sets[0].tally)
        write_statistics(save_statistics, record, sets[0].moments[0])
    return _Measured(sets, used, weights, precision)


def _open(name: str, location: files.Location, footage: FootageOptions, stack: ExitStack) -> _Side:
    contents = stack.enter_context(open_footage(location, footage))
    if contents.arrays is None or not is_statistics(contents):
        return _Side(name, contents)
    record, moments = read_statistics(contents.arrays.arrays, contents.where)
    return _Side(name, contents, record, moments)


def _choose_protocol(
    sides: Sequence[_Side], protocol: str | Protocol | None, changes: Mapping[str, Any]
) -> Protocol:
    """The one that was asked for, else that of saved statistics, else the default."""
    if protocol is None:
        protocol = next((s.record.protocol for s in sides if s.record), DEFAULT_PROTOCOL)
    return change_protocol(protocol, changes)


def _agree(
    sides: Sequence[_Side], used: Protocol, embedder: Embedder | None, options: ComputeOptions
) -> tuple[WeightsRecord | None, str]:
    """Weights and precision of all sets; refuses sets that do not compare.

    Raises:
        UsageError: features beside videos or statistics; statistics made in another way.
    """
    given = [side for side in sides if side.features is not None]
    if given and len(given) < len(sides):
        raise UsageError(
            f"{given[0].contents.where} holds features of an unknown network; they compare with "
            "features alone: give an array of them for both sets"
        )
    records = [(side.record, side.contents.where) for side in sides if side.record]
    if embedder is not None:
        weights, precision = embedder.weights, str(embedder.precision)
        asked = "what is asked for (--protocol, --checkpoint)"
    elif records:
        weights, precision = records[0][0].weights, records[0][0].precision
        asked = "what is asked for (--protocol)"
    else:
        return None, options.precision
    mine = make_record(used, weights, precision, Tally(0, "", 0))
    for record, where in records:
        check_same(mine, record, (asked, where))
    return weights, precision


def _collect(
    side: _Side, clips: ClipSet | None, gathered: Sequence[dict[str, SetRows]], keep: bool
) -> MeasuredSet:
    """A set from all processes, or from its file."""
    if side.record is not None and side.moments is not None:
        record, moments = side.record, side.moments
        tally = Tally(
            moments.count,
            record.origin,
            record.found,
            record.skipped,
            record.left_out,
            record.damaged,
            sizes=record.sizes,
        )
        return MeasuredSet((moments,), tally)
    if (features := side.features) is not None:
        moments = Moments(features.shape[1], keep=keep)
        _check_memory(features, side.contents.where, keep=keep)
        for batch in feature_batches(features, side.contents.where):
            moments.update(batch)
        return MeasuredSet((moments,), Tally(moments.count, "features", moments.count))
    assert clips is not None
    whole = gathered[0][side.name]
    for part in gathered[1:]:
        whole.merge(part[side.name])
    skipped = [Failure(clips.keys[i], text) for i, text in whole.skipped]
    damaged = [Damaged(clips.keys[i], text) for i, text in whole.damaged]
    found = len(clips.keys)
    tally = Tally(
        used=whole.used,
        clips=whole.moments[0].count,
        origin=clips.origin,
        found=found,
        skipped=len(skipped),
        left_out=found - clips.planned,
        damaged=len(damaged),
        reasons=tuple(sorted(skipped)),
        damages=tuple(sorted(damaged)),
        sizes=tuple(sorted(whole.sizes)),
        resumed=whole.resumed,
    )
    keys = [clips.keys[i] for block in sorted(whole.videos) for i in whole.videos[block]]
    return MeasuredSet(tuple(m.total() for m in whole.moments), tally, tuple(keys))


def _check_memory(features: np.ndarray, where: str, *, keep: bool) -> None:
    """Refuse, before it is taken, what the rows of given features would need when all are kept.

    Raises:
        UsageError: names the option that keeps them.
    """
    size = 8 * features.size
    if keep and size > MAX_KEPT_BYTES:
        raise UsageError(
            f"{where}: {len(features)} x {features.shape[1]} features take {size >> 30} GiB when "
            f"all are kept, as --kvd and --plot do (at most {MAX_KEPT_BYTES >> 30}); leave those "
            "out, or give fewer rows"
        )


def run_fvd(
    real: str,
    fake: str | None,
    measure: Measure,
    changes: Changes,
    footage: FootageOptions,
    options: ComputeOptions,
    outputs: FvdOutputs,
) -> int:
    """``i3d fvd``: the exit code, 1 if with strict videos were skipped."""
    how: dict[str, Any] = {
        "checkpoint": measure.checkpoint,
        "protocol": measure.protocol,
        "changes": changes.as_dict(),
        "footage": footage,
        "options": options,
        "cache": outputs.cache,
        "progress": True,
    }
    kvd, plot, save_statistics = outputs.kvd, outputs.plot, outputs.save_statistics
    if fake is None:
        if save_statistics is None or kvd or plot is not None or outputs.output is not None:
            raise UsageError("FAKE is missing; without it, --save-statistics alone is done")
        saved = save_set(real, save_statistics, **how)
        if saved is None:
            return 0
        show(saved, as_json=outputs.as_json)
        return outputs.exit_code(range(saved.tally.skipped))
    if plot is not None:
        check_plot(plot, suffix="png")
    result = fvd(
        real, fake, kvd=kvd, curve=plot is not None, save_statistics=save_statistics, **how
    )
    if result is None:
        return 0
    show(result, as_json=outputs.as_json, output=outputs.output)
    if plot is not None:
        from i3d.tasks.fvd.plot import plot_curve

        plot_curve(result, plot)
    say_written(outputs.output, plot, save_statistics)
    return outputs.exit_code(range(result.real.skipped + result.fake.skipped))
