"""Accuracy of an RGB network, a flow network or both on a labelled dataset.

    shards or videos --rank r: an equal part of the plan--> workers read and decode
      --uint8--> device: crop, scale, batch --> network --> logits of every video (kept in parts)
    all ranks --one gather--> rank 0: accuracies, table, JSON, page

Every video of the plan belongs to exactly one process, by its place in the plan and the number of
processes alone. No process waits for another before the end. A video that cannot be read is skipped
with its reason; what is no video's fault ends the job.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version

import numpy as np
import torch

from i3d import files
from i3d.classes import ClassList, numbered_classes
from i3d.clips import Views, loop_frames, scale_clip
from i3d.console import Bar, choose_teller, progress_bar, say, say_written, show
from i3d.data.reading.clips import ClipSource, Placement, clip_bytes, open_clips
from i3d.data.shards import Failure
from i3d.data.videos import Contents, VideoSet, open_videos
from i3d.errors import CheckpointError, DatasetError, UsageError, VideoError
from i3d.models.i3d import I3D
from i3d.parallel.ahead import Item, check_shared_memory, read_items
from i3d.parallel.process import choose_workers, terminated_cleanly
from i3d.parallel.world import World, connect, world_from_environment
from i3d.presets import CHAINER_I3D, CHAINER_I3D_CONVERTED, STREAMS, Preset, Stream, find_preset
from i3d.tasks.evaluate.options import EvaluateCheckpoints, EvaluateOptions, EvaluateOutputs
from i3d.tasks.evaluate.parts import Part, Parts, Plan
from i3d.tasks.evaluate.predictions import (
    About,
    Damaged,
    Predictions,
    check_location,
    fuse,
    read_predictions,
    write_predictions,
)
from i3d.tasks.evaluate.result import Cost, Evaluation
from i3d.tasks.network import (
    Batcher,
    Network,
    choose_device,
    common_preset,
    device_name,
    load_network,
)
from i3d.version import VERSION

PART_SECONDS = 60.0  # of work that a crash may cost
_OF_CHAINER = (CHAINER_I3D.name, CHAINER_I3D_CONVERTED.name)
UNLABELLED = "it has no label to compare with"
_REMEDIES = {True: "with --classes", False: "when you convert the folder, with --classes"}


@dataclass(frozen=True)
class Evaluated:
    """The outcome, and pictures for the page.

    Attributes:
        evaluation: accuracies and all that goes with them.
        thumbnails: video -> frame uint8 (H, W, 3), of the surest mistakes.
    """

    evaluation: Evaluation
    thumbnails: Mapping[str, np.ndarray] = field(default_factory=dict)


def evaluate(
    videos: files.Location | VideoSet,
    checkpoints: Mapping[Stream, files.Location | I3D],
    *,
    options: EvaluateOptions = EvaluateOptions(),
    predictions: files.Location | None = None,
    resume: bool | None = None,
    thumbnails: int = 0,
    world: World | None = None,
    progress: bool = False,
) -> Evaluated | None:
    """Evaluate networks on a labelled dataset.

    Args:
        videos: folder of shards, or videos; path or URL.
        checkpoints: stream -> name, path or URL (:func:`i3d.load`), or a folded network that is
            in memory; one or both.
        options: how.
        predictions: ``.parquet`` or ``.csv`` file for the logits of every video. While it runs, the
            folder ``NAME.parts`` beside it holds what each process has done.
        resume: go on from those parts, with any number of processes; None: where there are some;
            False: refuse to, where there are some.
        thumbnails: read a picture of so many of the surest mistakes.
        world: this process's part of the work; default: from the launcher's environment.
        progress: draw a progress bar on process 0.

    Returns:
        What was found, on process 0; None on the others.

    Raises:
        DatasetError: the dataset cannot be understood, or nothing in it can be evaluated.
        CheckpointError: a checkpoint cannot be loaded, or does not fit the dataset.
        UsageError: an option has no meaning.
        I3DError: the storage fails, a worker dies, or another process does.
    """
    world = world_from_environment() if world is None else world
    tell = choose_teller(progress, first=world.first)
    progress = progress and world.first
    if predictions is not None:
        check_location(predictions)
    elif resume:
        raise UsageError("--resume goes on from what --predictions FILE has kept; name that file")
    if not checkpoints:
        raise UsageError("no checkpoint to evaluate; name an RGB one, a flow one or both")
    device = choose_device(options.device, world)
    with open_videos(videos, labels="required", say=tell) as contents:
        contents.class_names()
        contents.require(list(checkpoints))
        networks = _load(checkpoints, device, options, progress=progress)
        classes, positions = match_classes(contents, networks, tell)
        preset = common_preset(networks, contents.preset)
        views = options.find_views(preset)
        about = _describe(contents, networks, options, classes, preset, views)
        # shards hold ten seconds; the views of a video file are spread over as much of it
        seconds = max(preset.clip_frames, views.frames) / preset.fps
        source = open_clips(contents, preset, max_seconds=seconds, positions=positions)
    workers = choose_workers(options.workers, device, world, decodes=contents.shards is None)
    size = clip_bytes(views, preset)
    check_shared_memory(size, workers=workers, processes=world.local_size)
    plan = Plan.of(source.keys, source.labels)
    parts = None if predictions is None else Parts(predictions, about, plan, rank=world.rank)
    if parts is not None and resume is False:
        parts.refuse()
    earlier = [] if parts is None else parts.read()
    with connect(world) as group, terminated_cleanly():
        job = _VideoLogits(networks, about, source, world.share(len(source.keys)), parts)
        job.take(earlier)
        start = time.monotonic()
        title = world.title("evaluate") if progress else None
        with progress_bar(title, total=len(job.todo), unit="videos") as bar:
            job.run(options, device, workers, bar)
        gathered = group.gather(job.part().to_bytes(about, plan))
        seconds = time.monotonic() - start
        if not world.first:
            return None
        shares = [Part.from_bytes(data, about, plan, "a process's results") for data in gathered]
        table = _join(source, about, shares)
        known = len({i for part in earlier for i in part.videos})
        cost = Cost(
            seconds=seconds,
            videos=len(table) - known,
            device=device_name(device),
            processes=world.size,
            workers=workers,
            batch_size=job.batch_size,
        )
        evaluation = Evaluation(table, cost)
        if parts is not None and predictions is not None:
            write_predictions(predictions, table)
            parts.remove()
            files.remove_leftovers([predictions, f"{predictions}.json"])
        return Evaluated(evaluation, _read_thumbnails(source, evaluation, thumbnails))


# --- what is evaluated ----------------------------------------------------------------------------


def _load(
    checkpoints: Mapping[Stream, files.Location | I3D],
    device: str,
    options: EvaluateOptions,
    *,
    progress: bool,
) -> dict[Stream, Network]:
    """The networks, RGB first; refuses one that is for the other stream."""
    networks = {}
    for stream in STREAMS:
        if stream not in checkpoints:
            continue
        network = load_network(
            checkpoints[stream], device=device, precision=options.precision, progress=progress
        )
        if network.stream != stream:
            raise CheckpointError(
                f"{network.title} is a network for {network.stream}; pass it as "
                f"--{network.stream}-checkpoint"
            )
        networks[stream] = network
    return networks


def match_classes(
    contents: Contents,
    networks: Mapping[Stream, Network],
    tell: Callable[[str], None] | None = None,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes of the logits, and the position among them of every class of the dataset.

    They are the same list. Of the Chainer program's folders, whose labels count the class folders
    that were there, the names may be some of the networks'; labels without names are positions
    already.

    Raises:
        DatasetError: no labels.
        CheckpointError: the networks tell other classes apart.
    """
    names = contents.class_names()
    assert contents.classes is not None
    named = next((n.model for n in networks.values() if n.model.has_class_names), None)
    classes = names
    positions: list[int | None] = list(range(len(names)))
    if contents.classes.is_numbered:
        most = max(map(_count, networks.values()))
        classes = _number(most) if named is None else named.classes
        if len(names) <= len(classes):
            line = (
                f"warning: {contents.where}: its labels have no names, so they are taken for "
                f"positions in the checkpoint's list of {len(classes)}, which is right if every "
                f"class had a folder; name them {_REMEDIES[contents.preset == CHAINER_I3D.name]}"
            )
            (tell or warnings.warn)(line)
    elif named is not None and contents.preset in _OF_CHAINER:
        classes = named.classes
        known = ClassList("checkpoint", classes)
        positions = [known.find(name) for name in names]
    for network in networks.values():
        model, name = network.model, network.title
        fits = model.num_classes == len(classes) and len(names) <= len(classes)
        if not fits or None in positions or (model.has_class_names and model.classes != classes):
            raise CheckpointError(
                f"{name} tells {model.num_classes} classes apart ({_first(model.classes)}), and "
                f"{contents.where} is labelled with {len(names)} others "
                f"({_first(names)}); name --classes of the checkpoint when you prepare the "
                "videos, or another checkpoint"
            )
    return classes, tuple(i for i in positions if i is not None)


def _count(network: Network) -> int:
    return network.model.num_classes


def _number(count: int) -> tuple[str, ...]:
    return numbered_classes(count).names


def _describe(
    contents: Contents,
    networks: Mapping[Stream, Network],
    options: EvaluateOptions,
    classes: tuple[str, ...],
    preset: Preset,
    views: Views,
) -> About:
    """What is to be evaluated."""
    libraries = "torch", "numpy", "simplejpeg"
    return About(
        dataset=contents.name,
        classes=classes,
        preset=preset.name,
        frames=views.frames,
        clips=views.clips,
        crops=views.crops,
        precision=options.precision,
        checkpoints={s: n.used for s, n in networks.items()},
        versions={
            "i3d": VERSION,
            **{name: version(name) for name in libraries},
            **contents.versions,
        },
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# --- the work of one process ----------------------------------------------------------------------


class _StreamLogits:
    """One stream's network: a video's views become clips, their logits its mean.

    Attributes:
        done: video's index -> float32 (num_classes,); taken out by the caller.
    """

    def __init__(
        self, network: Network, options: EvaluateOptions, preset: Preset, *, frames: int
    ) -> None:
        self.network, self.frames, self.preset = network, frames, preset
        self.batcher = Batcher(network.compute, options, device=network.device, frames=frames)
        self.done: dict[int, np.ndarray] = {}
        self._rows: dict[int, list[np.ndarray]] = {}
        self._views: dict[int, int] = {}

    def add(self, index: int, pixels: torch.Tensor, placement: Placement) -> None:
        """Cut a video's views, on the device; run the batches that become full."""
        stream, crop = self.network.stream, self.preset.crop
        pixels = pixels.to(self.network.device, non_blocking=True)
        starts = placement.starts[stream]
        self._views[index] = len(starts) * len(placement.corners)
        self._rows[index] = []
        for start in starts:
            looped = loop_frames(pixels[start : start + self.frames], self.frames)
            for top, left in placement.corners:
                view = looped[:, top : top + crop, left : left + crop]
                self._take(self.batcher.add(scale_clip(view, stream, self.preset), index))

    def finish(self) -> None:
        """Run what is left."""
        self._take(self.batcher.finish())

    def _take(self, batches: Sequence[tuple[list[int], np.ndarray]]) -> None:
        for owners, logits in batches:
            for owner, row in zip(owners, logits, strict=True):
                rows = self._rows[owner]
                rows.append(row)
                if len(rows) == self._views[owner]:
                    # float64, in the order of the views: how they were batched does not matter
                    with np.errstate(invalid="ignore"):  # what overflowed is said of the video
                        mean: np.ndarray = np.stack(rows).mean(0, dtype=np.float64)
                    self.done[owner] = mean.astype(np.float32)
                    del self._rows[owner], self._views[owner]


class _VideoLogits:
    """This process's videos."""

    def __init__(
        self,
        networks: Mapping[Stream, Network],
        about: About,
        source: ClipSource,
        mine: range,
        parts: Parts | None,
    ) -> None:
        self.networks, self.about, self.source, self.parts = networks, about, source, parts
        self.mine = mine
        self.logits: dict[int, dict[Stream, np.ndarray]] = {}
        self.skipped = {i: UNLABELLED for i in mine if source.labels[i] is None}
        self.damaged: dict[int, str] = {}  # of those that were read, whatever came of them
        self.batch_size = 0
        self._unwritten: list[int] = []
        self._kept = False  # whether a part of this run was written
        self._right = self._done = 0  # of this run

    @property
    def todo(self) -> list[int]:
        """Videos without an outcome."""
        return [i for i in self.mine if i not in self.logits and i not in self.skipped]

    def take(self, parts: Sequence[Part]) -> None:
        """Adopt what was done before; what was skipped is tried again."""
        for part in parts:
            for row, i in enumerate(part.videos):
                if i in self.mine:
                    self.logits[i] = {s: values[row] for s, values in part.logits.items()}
            self.damaged |= {i: damage for i, damage in part.damaged if i in self.mine}

    def run(self, options: EvaluateOptions, device: str, workers: int, bar: Bar) -> None:
        """Evaluate them."""
        todo = self.todo
        if not todo:
            return
        preset, views = find_preset(self.about.preset), self.about.views
        streams = {
            s: _StreamLogits(network, options, preset, frames=views.frames)
            for s, network in self.networks.items()
        }
        read = partial(self.source.read, streams=tuple(streams), views=views)
        written = time.monotonic()
        try:
            items = read_items(
                read, todo, workers=workers, pin=device != "cpu", names=self.source.keys
            )
            for number, video in enumerate(items, 1):
                self._look_at(video, streams)
                bar.update(number, note=self._note())
                if time.monotonic() - written > PART_SECONDS:
                    self._write()
                    written = time.monotonic()
            for stream in streams.values():
                stream.finish()
            self._collect(streams)
            bar.update(len(todo), note=self._note())
            self.batch_size = min(s.batcher.batch_size for s in streams.values())
        finally:
            self._write()  # on Ctrl-C too

    def _look_at(self, video: Item, streams: Mapping[Stream, _StreamLogits]) -> None:
        if video.error is not None:
            self.skipped[video.index] = video.error
        else:
            if video.about.damage is not None:
                self.damaged[video.index] = video.about.damage
            for name, stream in streams.items():
                stream.add(video.index, video.tensors[name], video.about)
        self._collect(streams)

    def _collect(self, streams: Mapping[Stream, _StreamLogits]) -> None:
        """Take the videos of which every stream is done."""
        ready = set.intersection(*(set(stream.done) for stream in streams.values()))
        for i in sorted(ready):
            logits = {s: stream.done.pop(i) for s, stream in streams.items()}
            reasons = (self.networks[s].explain_overflow(row) for s, row in logits.items())
            if (reason := next(filter(None, reasons), None)) is not None:
                self.skipped[i] = reason
                continue
            self.logits[i] = logits
            self._unwritten.append(i)
            summed = np.sum(list(logits.values()), axis=0)
            self._right += int(summed.argmax()) == self.source.labels[i]
            self._done += 1

    def _note(self) -> str:
        return f"top-1 {self._right / self._done:.2%}" if self._done else ""

    def _write(self) -> None:
        if self.parts is None or not self._unwritten:
            return
        try:
            self.parts.write(self._part(self._unwritten, {}))
        except OSError as error:
            if not self._kept:
                raise  # a wrong place, said in the first minute
            say(f"{error}; it is tried again with the next part")
            return
        self._kept = True
        self._unwritten = []

    def part(self) -> Part:
        """All that this process has to report."""
        return self._part(sorted(self.logits), self.skipped)

    def _part(self, videos: Sequence[int], skipped: Mapping[int, str]) -> Part:
        empty = np.zeros((0, len(self.about.classes)), np.float32)
        logits = {
            s: np.stack([self.logits[i][s] for i in videos]) if videos else empty
            for s in self.networks
        }
        damaged = tuple((i, self.damaged[i]) for i in videos if i in self.damaged)
        return Part(tuple(videos), logits, tuple(sorted(skipped.items())), damaged)


# --- the outcome ----------------------------------------------------------------------------------


def _join(source: ClipSource, about: About, parts: Sequence[Part]) -> Predictions:
    """All processes' results in the order of the plan."""
    skipped = tuple(
        sorted(Failure(source.keys[i], reason) for part in parts for i, reason in part.skipped)
    )
    damaged = tuple(
        sorted(Damaged(source.keys[i], damage) for part in parts for i, damage in part.damaged)
    )
    numbers = np.concatenate([np.array(part.videos, np.int64) for part in parts])
    if not len(numbers):
        first = f"{skipped[0].key}: {skipped[0].reason}"
        raise DatasetError(f"none of {len(skipped)} videos could be evaluated; the first, {first}")
    order = np.argsort(numbers)
    targets = [source.labels[i] for i in numbers[order]]
    streams: list[Stream] = [s for s in STREAMS if s in about.checkpoints]
    return Predictions(
        replace(about, found=len(source.keys), skipped=skipped, damaged=damaged),
        tuple(source.keys[i] for i in numbers[order]),
        np.array(targets, np.int64),
        {s: np.concatenate([part.logits[s] for part in parts])[order] for s in streams},
    )


def _read_thumbnails(
    source: ClipSource, evaluation: Evaluation, count: int
) -> dict[str, np.ndarray]:
    if not count:
        return {}
    places = {key: i for i, key in enumerate(source.keys)}
    pictures = {}
    for mistake in evaluation.surest_mistakes(count):
        try:
            pictures[mistake.video] = source.thumbnail(places[mistake.video])
        except (DatasetError, VideoError):
            continue  # the page shows the mistake without its picture
    return pictures


def run_evaluate(
    videos: partial[VideoSet],
    options: EvaluateOptions,
    checkpoints: EvaluateCheckpoints,
    outputs: EvaluateOutputs,
    sources: Sequence[str],
) -> int:
    """``i3d evaluate``: the exit code, 1 if with strict videos were skipped.

    Args:
        videos: makes the set of a location.
        options: how.
        checkpoints: the networks.
        outputs: what is written.
        sources: one dataset or, to be fused, two or more predictions files.
    """
    mistakes = 0
    if outputs.report is not None:
        from i3d.tasks.evaluate.page import MISTAKES_SHOWN as mistakes
    given: dict[Stream, str | None] = {
        "rgb": checkpoints.rgb_checkpoint,
        "flow": checkpoints.flow_checkpoint,
    }
    named = {stream: name for stream, name in given.items() if name is not None}
    if outputs.fuse:
        if len(sources) < 2 or named:
            raise UsageError("--fuse takes two or more predictions files, and no checkpoint")
        joined = fuse([read_predictions(source) for source in sources], sources)
        if outputs.predictions is not None:
            write_predictions(outputs.predictions, joined)
        result: Evaluated | None = Evaluated(Evaluation(joined))
    else:
        if len(sources) != 1:
            raise UsageError(f"{len(sources)} datasets; evaluate takes one, or --fuse two files")
        result = evaluate(
            videos(sources[0]),
            named,
            options=options,
            predictions=outputs.predictions,
            resume=outputs.resume,
            thumbnails=mistakes,
            progress=True,
        )
    if result is None:
        return 0
    evaluation = result.evaluation
    show(evaluation, as_json=outputs.as_json, output=outputs.output)
    if outputs.report is not None:
        from i3d.tasks.evaluate.page import write_page

        write_page(evaluation, outputs.report, thumbnails=result.thumbnails)
    files.remove_leftovers(name for name in (outputs.output, outputs.report) if name is not None)
    say_written(outputs.output, outputs.report, outputs.predictions)
    return outputs.exit_code(evaluation.predictions.about.skipped)
