"""``i3d fvd``: how far a set of generated videos is from a set of real ones."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from i3d import files
from i3d.console import say, say_written, show
from i3d.data.footage.options import FootageOptions
from i3d.errors import I3DError, UsageError
from i3d.metrics.frechet import distance
from i3d.models.i3d import I3D
from i3d.parallel.world import World
from i3d.report.plot import check_folder, check_plot
from i3d.tasks.fvd.analysis import LengthPoint
from i3d.tasks.fvd.citations import Citation, ProtocolTable
from i3d.tasks.fvd.cutting import cut_one
from i3d.tasks.fvd.options import (
    DEFAULT_CHECKPOINT,
    DEFAULT_PROTOCOL,
    Beside,
    Changes,
    FvdOutputs,
    Measure,
)
from i3d.tasks.fvd.page import EXTREMES_SHOWN, STRIP_FRAMES, write_page
from i3d.tasks.fvd.protocols import Protocol, change_protocol
from i3d.tasks.fvd.result import (
    Result,
    Tally,
    compute_result,
    describe_tally,
    make_record,
    warn_of,
)
from i3d.tasks.fvd.sets import Measured, MeasuredSet, measure_sets
from i3d.tasks.fvd.statistics import Record, check_name, write_statistics
from i3d.tasks.options import ComputeOptions

REAL, FAKE = "real", "fake"


def fvd(
    real: files.Location,
    fake: files.Location,
    *,
    checkpoint: files.Location | I3D = DEFAULT_CHECKPOINT,
    protocol: str | Protocol | None = None,
    changes: Mapping[str, Any] | None = None,
    footage: FootageOptions = FootageOptions(),
    options: ComputeOptions = ComputeOptions(),
    beside: Beside = Beside(),
    curve: bool = False,
    save_statistics: files.Location | None = None,
    page: files.Location | None = None,
    cache: bool = True,
    world: World | None = None,
    progress: bool = False,
) -> Result | None:
    """Distance of two sets of videos.

    Args:
        real: folder of videos, of folders of frames, of arrays, or of shards; an archive of frames
            or videos; one array of videos or features; or saved statistics; path or URL.
        fake: the other set, given in the same ways.
        checkpoint: name, path or URL (:func:`i3d.load`), or an unfolded network.
        protocol: name, or a protocol; None: that of saved statistics, else google-2018.
        changes: settings of the protocol to replace, such as ``{"frames": 32}``.
        footage: what arrays of videos do not say themselves.
        options: how to compute.
        beside: which other numbers of the same features.
        curve: also how the distance falls with the number of videos.
        save_statistics: ``.npz`` file for the real set's statistics.
        page: ``.html`` file for a report of all that was computed.
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
    if save_statistics is not None:
        _check_output(save_statistics, real, fake)
    if page is not None:
        if not os.fspath(page).endswith(".html"):
            raise UsageError(f"{page}: a report is a page; end its name in .html")
        _check_output(page, real, fake)
    lengths = beside.lengths
    with measure_sets(
        {REAL: real, FAKE: fake},
        checkpoint=checkpoint,
        protocol=protocol,
        changes=changes or {},
        footage=footage,
        options=options,
        lengths=lengths,
        save=save_statistics is not None,
        keep=beside.interval,
        keep_all=beside.needs_rows or curve or page is not None,
        cache=cache,
        world=world,
        progress=progress,
    ) as measured:
        if measured is None:
            return None
        result = _compute(measured, beside, lengths, curve=curve, extremes=page is not None)
        if save_statistics is not None:
            _save(measured, save_statistics)
        if page is not None:
            shown = _thumbnails(measured, result)
            write_page(result, page, thumbnails=shown[FAKE], real_thumbnails=shown[REAL])
    if not progress:
        warn_of(result, stacklevel=3)
    return result


def _check_output(output: files.Location, *sets: files.Location) -> None:
    """Refuse before the work what cannot be written, or would be written over a set.

    Raises:
        UsageError: names the file.
    """
    check_folder(output)
    if str(output).endswith(".npz"):
        check_name(output)
    path = files.local_path(output)
    for location in sets:
        source = files.local_path(location)
        if path is None or source is None or not (path.exists() and source.exists()):
            continue
        if path.samefile(source):
            raise UsageError(f"{output}: that is one of the sets; give another name")


def _compute(
    measured: Measured, beside: Beside, lengths: Sequence[int], *, curve: bool, extremes: bool
) -> Result:
    """The distance and what was asked for beside it."""
    one, other = measured.sets[REAL], measured.sets[FAKE]
    keys = (one.keys, other.keys) if one.keys and other.keys else None
    unbiased = measured.protocol.unbiased
    points = [
        LengthPoint(n, distance(x, y, unbiased=unbiased), x.count, y.count)
        for n, x, y in zip(
            (measured.protocol.frames, *lengths), one.moments, other.moments, strict=False
        )
        if lengths and min(x.count, y.count) > 1
    ]
    return compute_result(
        (one.moments[0], other.moments[0]),
        (one.tally, other.tally),
        measured.protocol,
        measured.weights,
        measured.precision,
        beside,
        points=curve,
        extremes=EXTREMES_SHOWN if extremes else 0,
        keys=keys,
        lengths=sorted(points),
    )


def _thumbnails(measured: Measured, result: Result) -> dict[str, dict[str, np.ndarray]]:
    """Some frames of the videos that the page shows, by set and key."""
    videos = (*result.analysis.nearest, *result.analysis.farthest)
    wanted = {FAKE: {v.key for v in videos}, REAL: {v.real for v in videos}}
    shown: dict[str, dict[str, np.ndarray]] = {REAL: {}, FAKE: {}}
    for name, keys in wanted.items():
        side = measured.sets[name]
        if side.clips is None:
            continue
        places = {key: i for i, key in enumerate(side.clips.keys) if key in keys}
        for key, place in places.items():
            frames = _read_some(side, place)
            if frames is not None:
                shown[name][key] = frames
    return shown


def _read_some(side: MeasuredSet, video: int) -> np.ndarray | None:
    """Frames from the beginning to the end of a video's (first) clip; None where they fail."""
    assert side.clips is not None
    try:
        with side.clips.footage.open(video) as opened:
            cut = cut_one(side.clips.keys[video], opened.count_frames, side.clips.protocol)
            places = np.linspace(0, len(cut) - 1, STRIP_FRAMES).round().astype(int)
            numbers = sorted(cut[place] for place in places)
            frames = list(opened.read(numbers))
    except I3DError:
        return None  # the page does without
    return np.stack([np.clip(f, 0, 255).round().astype(np.uint8) for f in frames] or [_BLACK])


_BLACK = np.zeros((1, 1, 3), np.uint8)


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
    _check_output(output, videos)
    with measure_sets(
        {REAL: videos},
        checkpoint=checkpoint,
        protocol=protocol,
        changes=changes or {},
        footage=footage,
        options=options,
        save=True,
        cache=cache,
        world=world,
        progress=progress,
    ) as measured:
        if measured is None:
            return None
        record = _save(measured, output)
    return Saved(os.fspath(output), record, measured.sets[REAL].tally)


def _save(measured: Measured, output: files.Location) -> Record:
    real = measured.sets[REAL]
    assert measured.weights is not None
    record = make_record(measured.protocol, measured.weights, measured.precision, real.tally)
    write_statistics(output, record, real.moments[0])
    return record


def run_fvd(
    real: str | None,
    fake: str | None,
    measure: Measure,
    changes: Changes,
    footage: FootageOptions,
    beside: Beside,
    options: ComputeOptions,
    outputs: FvdOutputs,
) -> int:
    """``i3d fvd``: the exit code, 1 if with strict videos were skipped."""
    if outputs.protocols:
        show(ProtocolTable(), as_json=outputs.as_json, output=outputs.output)
        return 0
    if real is None:
        if outputs.cite:
            chosen = change_protocol(measure.protocol or DEFAULT_PROTOCOL, changes.as_dict())
            show(Citation(chosen), as_json=outputs.as_json, output=outputs.output)
            return 0
        raise UsageError("REAL and FAKE are missing: i3d fvd REAL FAKE; or --protocols")
    how: dict[str, Any] = {
        "checkpoint": measure.checkpoint,
        "protocol": measure.protocol,
        "changes": changes.as_dict(),
        "footage": footage,
        "options": options,
        "cache": outputs.cache,
        "progress": True,
    }
    plot, save_statistics, page = outputs.plot, outputs.save_statistics, outputs.report
    if fake is None:
        others = replace(outputs, save_statistics=None, as_json=False, strict=False, cache=True)
        if save_statistics is None or others != FvdOutputs() or beside != Beside():
            raise UsageError("FAKE is missing; without it, --save-statistics alone is done")
        saved = save_set(real, save_statistics, **how)
        if saved is None:
            return 0
        show(saved, as_json=outputs.as_json)
        return outputs.exit_code(range(saved.tally.skipped))
    if plot is not None:
        check_plot(plot, suffix="png")
    for output in (outputs.output, plot):
        if output is not None:
            _check_output(output, real, fake)
    result = fvd(
        real,
        fake,
        beside=beside,
        curve=plot is not None or page is not None,
        save_statistics=save_statistics,
        page=page,
        **how,
    )
    if result is None:
        return 0
    sides = result.real, result.fake
    if resumed := sum(side.resumed for side in sides):
        say(
            f"{resumed} of {sum(side.used + side.skipped for side in sides)} videos were measured "
            "before; --no-cache measures them again"
        )
    shown = Citation(result.protocol, result) if outputs.cite else result
    show(shown, as_json=outputs.as_json, output=outputs.output)
    if plot is not None:
        from i3d.tasks.fvd.plot import plot_curve

        plot_curve(result, plot)
    say_written(outputs.output, plot, save_statistics, page)
    return outputs.exit_code(range(result.real.skipped + result.fake.skipped))
