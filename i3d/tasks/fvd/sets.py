"""Both sets of a Fréchet Video Distance, opened and measured.

    videos, shards, arrays --rank r: an equal part--> workers decode and resize as the protocol says
      --clips--> device: network --> features (N, D) --> sums of constant size
    all ranks --one gather--> rank 0: merge --> moments and tally of each set

Every video of both sets belongs to exactly one process. No process waits for another before the
end. A video that cannot be read, or is too short, is skipped with its reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from i3d import files
from i3d.data.footage.opening import Opened, check_options, open_footage
from i3d.data.footage.options import FootageOptions
from i3d.data.shards import Failure
from i3d.errors import UsageError
from i3d.metrics.frechet import Moments
from i3d.models.i3d import I3D
from i3d.parallel.process import terminated_cleanly
from i3d.parallel.world import World, connect, world_from_environment
from i3d.tasks.fvd.clip_sets import ClipSet, feature_batches, given_features, is_statistics
from i3d.tasks.fvd.embedder import Embedder
from i3d.tasks.fvd.feature_cache import FeatureCache, drop_oldest
from i3d.tasks.fvd.measuring import SetMeasurer, SetRows, unpack_sets
from i3d.tasks.fvd.options import DEFAULT_PROTOCOL
from i3d.tasks.fvd.protocols import Protocol, change_protocol
from i3d.tasks.fvd.result import Damaged, Tally, make_record
from i3d.tasks.fvd.statistics import Record, WeightsRecord, check_same, read_statistics
from i3d.tasks.network import choose_device
from i3d.tasks.options import ComputeOptions

MAX_KEPT_BYTES = 1 << 34  # 5 million videos with 400 logits


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
class MeasuredSet:
    """A set after its videos were looked at.

    Attributes:
        moments: the features' at each length of clips, the protocol's first.
        tally: what became of the videos.
        clips: the videos themselves; None of saved statistics and of features.
        keys: the video of each row, where rows are kept.
    """

    moments: tuple[Moments, ...]
    tally: Tally
    clips: ClipSet | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What process 0 knows in the end: the sets in their order, and how features were made.

    Attributes:
        sets: by name.
        protocol: the one that was used.
        weights: the network's; None where features were given.
        precision: its arithmetic's.
    """

    sets: dict[str, MeasuredSet]
    protocol: Protocol
    weights: WeightsRecord | None
    precision: str


@contextmanager
def measure_sets(
    locations: Mapping[str, files.Location],
    *,
    checkpoint: files.Location | I3D,
    protocol: str | Protocol | None,
    changes: Mapping[str, Any],
    footage: FootageOptions,
    options: ComputeOptions,
    lengths: Sequence[int] = (),
    save: bool = False,
    keep: bool = False,
    keep_all: bool = False,
    cache: bool,
    world: World | None,
    progress: bool,
) -> Iterator[Measured | None]:
    """The moments of sets, on process 0; None on the others. The videos can be read for as long.

    Args:
        locations: name -> path or URL.
        checkpoint: name, path or URL, or an unfolded network.
        protocol: name, or a protocol; None: that of saved statistics, else google-2018.
        changes: settings of the protocol to replace.
        footage: what arrays of videos do not say themselves.
        options: how to compute.
        lengths: of further clips, the first frames of each, that are measured too.
        save: whether the first set's statistics will be saved, which only videos have.
        keep: whether every row is kept, of sets that have rows.
        keep_all: the same, and a set without rows is refused.
        cache: whether features are taken from the cache folder and kept in it.
        world: this process's part of the work; None: from the launcher's environment.
        progress: draw a progress bar on process 0.
    """
    keep = keep or keep_all
    world = world_from_environment() if world is None else world
    progress = progress and world.first
    device = choose_device(options.device, world)
    with ExitStack() as stack:
        sides = [_open(name, location, footage, stack) for name, location in locations.items()]
        check_options([side.contents for side in sides], footage)
        used = _choose_protocol(sides, protocol, changes)
        _check_lengths(lengths, used, sides)
        if save and sides[0].contents.footage is None:
            raise UsageError(
                f"{sides[0].contents.where} holds no videos, of which statistics are saved"
            )
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
        _check_given(sides, changes, keep_all=keep_all)
        gathered: list[dict[str, SetRows]] = []
        with connect(world) as group, terminated_cleanly():
            if embedder is not None:
                kept = FeatureCache(embedder, device) if cache else None
                job = SetMeasurer(embedder, clips, cache=kept, world=world, keep=keep)
                job.run(options, device, progress=progress)
                gathered = [unpack_sets(part, keep=keep) for part in group.gather(job.part())]
            if cache and world.local_rank == 0:
                drop_oldest()
        if not world.first:
            yield None
            return
        sets = {side.name: _collect(side, clips.get(side.name), gathered, keep) for side in sides}
        yield Measured(sets, used, weights, precision)


def measure_set(
    videos: files.Location,
    *,
    embedder: Embedder,
    footage: FootageOptions,
    options: ComputeOptions,
    device: str,
    keep: bool,
) -> MeasuredSet:
    """One set by a network that is loaded, in this process alone; features are kept in the cache.

    Raises:
        DatasetError: the set cannot be understood.
        UsageError: features of an unknown network, or statistics that were made otherwise.
    """
    with ExitStack() as stack:
        side = _open("videos", videos, footage, stack)
        check_options([side.contents], footage)
        if side.features is not None:
            raise UsageError(
                f"{side.contents.where} holds features of an unknown network; add them with "
                "update_features"
            )
        _agree([side], embedder.protocol, embedder, options)
        if side.contents.footage is None:
            return _collect(side, None, [], keep)
        clips = ClipSet(side.contents.footage, embedder.protocol)
        cache = FeatureCache(embedder, device)
        job = SetMeasurer(embedder, {side.name: clips}, cache=cache, world=World(), keep=keep)
        job.run(options, device, progress=False)
        drop_oldest()
        return _collect(side, clips, [job.sets], keep)


def _check_given(sides: Sequence[_Side], changes: Mapping[str, Any], *, keep_all: bool) -> None:
    """Refuse before the work what features and statistics cannot give.

    Raises:
        UsageError: names the set.
    """
    for side in sides:
        where = side.contents.where
        if side.features is not None and (moot := sorted(set(changes) - {"divisor"})):
            raise UsageError(f"{where} holds features, for which {moot[0]} says nothing")
        if keep_all and side.moments is not None and side.moments.rows is None:
            raise UsageError(
                f"{where} holds the sums of many videos; these need the features of every video: "
                "kernel distance, precision and recall, classes, plots and reports"
            )


def _check_lengths(lengths: Sequence[int], protocol: Protocol, sides: Sequence[_Side]) -> None:
    """Refuse lengths of which there are no clips.

    Raises:
        UsageError: names the length.
    """
    if not lengths:
        return
    for side in sides:
        if side.contents.footage is None:
            raise UsageError(
                f"{side.contents.where} holds no videos, which --sweep needs of both sets"
            )
    for length in lengths:
        change_protocol(protocol, {"frames": length})  # refuses what has no meaning
        if length > protocol.frames:
            raise UsageError(
                f"sweep {length}: clips have {protocol.frames} frames; give --frames {length} as "
                "well, and the others are the first frames of those"
            )


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
            record.found - record.skipped - record.left_out,
            record.origin,
            record.found,
            record.skipped,
            record.left_out,
            record.damaged,
            clips=moments.count,
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
    return MeasuredSet(tuple(m.total() for m in whole.moments), tally, clips, tuple(keys))


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
