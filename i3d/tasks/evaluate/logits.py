"""Accuracy of an RGB network, a flow network or both on a labelled dataset.

    shards or videos --rank r: an equal part of the plan--> workers read and decode
      --uint8--> device: crop, scale, batch --> network --> logits of every video (kept in parts)
    all ranks --one gather--> rank 0: accuracies, table, JSON, page

Every video of the plan belongs to exactly one process, by its place in the plan and the number of
processes alone. No process waits for another before the end. A video that cannot be read is skipped
with its reason; what is no video's fault ends the job.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import click
import numpy as np
import torch

import i3d
from i3d import files
from i3d.clips import Views
from i3d.console import Bar, progress_bar, show
from i3d.data.reading.clips import (
    ShardSource,
    Source,
    VideoSource,
    clip_bytes,
    load_videos,
)
from i3d.data.shards import MANIFEST_FILE, Failure, open_dataset
from i3d.errors import CheckpointError, DatasetError, UsageError, VideoError
from i3d.models.checkpoints import build, fingerprint, read_weights, resolve
from i3d.models.i3d import I3D
from i3d.parallel.ahead import check_shared_memory
from i3d.parallel.process import share_cores, terminated_cleanly
from i3d.parallel.world import World, connected, world_from_environment
from i3d.presets import STREAMS, Preset, Stream, find_preset
from i3d.tasks.evaluate.predictions import (
    About,
    Part,
    Parts,
    Predictions,
    UsedCheckpoint,
    check_location,
    fuse,
    read_predictions,
    write_predictions,
)
from i3d.tasks.evaluate.result import Cost, Evaluation
from i3d.tasks.network import (
    Batcher,
    Precision,
    check_precision,
    choose_device,
    find_batch_size,
)
from i3d.tasks.precompute.writing import VideoSet

PART_SECONDS = 60.0  # of work that a crash may cost
UNLABELLED = "it has no label to compare with"


@dataclass(frozen=True)
class Network:
    """A network in memory and what to say of it."""

    model: I3D
    used: UsedCheckpoint


@dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
        views: what the network sees of each video.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        batch_size: clips at a time, of each process; None finds what fits.
        workers: processes that read and decode, of each process; None: its share of the cores, at
            most two on a CPU, which the network needs itself.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        partial: take shards of which some are missing.
    """

    views: Views = field(default_factory=Views)
    precision: Precision = "fp32"
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    partial: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: it must be at least 1, or auto")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers {self.workers}: it must be 0 or more")


def evaluate(
    videos: files.Location | VideoSet,
    checkpoints: Mapping[Stream, files.Location | I3D],
    *,
    options: Options = Options(),
    predictions: files.Location | None = None,
    resume: bool = False,
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
        resume: go on from those parts, with any number of processes.
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
    if predictions is not None:
        check_location(predictions)
    elif resume:
        raise UsageError("--resume goes on from what --predictions FILE has kept; name that file")
    if not checkpoints:
        raise UsageError("no checkpoint to evaluate; name an RGB one, a flow one or both")
    device = choose_device(options.device, local_rank=world.local_rank)
    plan = _open(videos, checkpoints, options, progress=progress and world.first)
    workers = _workers(options.workers, device, world, decodes_videos=plan.decodes_videos)
    networks = {
        s: _network(s, checkpoints[s], device, progress=progress and world.first)
        for s in STREAMS
        if s in checkpoints
    }
    about = _about(plan, networks, options)
    source = plan.source(find_preset(about.preset))
    size = clip_bytes(options.views, find_preset(about.preset))
    check_shared_memory(size, workers=workers, processes=world.local_size)
    parts = None if predictions is None else Parts(predictions, about, rank=world.rank)
    if parts is not None and not resume:
        parts.refuse()
    earlier = parts.read() if parts is not None and resume else []
    with connected(world) as group, terminated_cleanly():
        job = _Job(networks, about, source, world.share(len(source.keys)), parts)
        job.take(earlier)
        start = time.monotonic()
        title = world.title("evaluate")
        with progress_bar(
            title if progress and world.first else None, total=len(job.todo), unit="videos"
        ) as bar:
            job.run(options, device, workers, bar)
        gathered = group.gather(job.part().to_bytes(about))
        seconds = time.monotonic() - start
        if not world.first:
            return None
        shares = [Part.from_bytes(data, about, "a process's results") for data in gathered]
        table = _table(source, about, shares)
        known = len({i for part in earlier for i in part.videos})
        cost = Cost(
            seconds=seconds,
            videos=len(table) - known,
            device=_device_name(device),
            processes=world.size,
            workers=workers,
            batch_size=job.batch_size,
        )
        evaluation = Evaluation(table, cost)
        if parts is not None and predictions is not None:
            write_predictions(predictions, table)
            parts.remove()
        return Evaluated(evaluation, _thumbnails(source, evaluation, thumbnails))


@dataclass(frozen=True)
class Evaluated:
    """The outcome, and pictures for the page.

    Attributes:
        evaluation: accuracies and all that goes with them.
        thumbnails: video -> frame uint8 (H, W, 3), of the surest mistakes.
    """

    evaluation: Evaluation
    thumbnails: Mapping[str, np.ndarray] = field(default_factory=dict)


# --- what is evaluated ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A dataset before its networks are known.

    Attributes:
        dataset: its name.
        where: its path, for messages.
        classes: names, in the order of the labels.
        preset: the shards' preprocessing; None for videos, which take the network's.
        versions: of what made the shards.
        source: makes the source of pixels for a preset.
        decodes_videos: whether its workers do more than unpack pictures.
    """

    dataset: str
    where: str
    classes: tuple[str, ...]
    preset: str | None
    versions: Mapping[str, str]
    source: Callable[[Preset], Source]
    decodes_videos: bool


def _open(
    videos: files.Location | VideoSet,
    checkpoints: Mapping[Stream, files.Location | I3D],
    options: Options,
    *,
    progress: bool,
) -> _Plan:
    videos = videos if isinstance(videos, VideoSet) else VideoSet(videos)
    where = os.fspath(videos.location)
    name = where.rstrip("/").rpartition("/")[2] or where
    if files.exists(files.join(where, MANIFEST_FILE)):
        if videos != VideoSet(videos.location):
            raise UsageError(
                f"{where} holds shards, which know their labels; classes, annotations, layout, "
                "split and trim are for a folder of videos"
            )
        shards = open_dataset(where, partial=options.partial)
        manifest = shards.manifest
        if manifest.classes is None:
            raise DatasetError(f"{where}: its videos have no labels, so there is no accuracy")
        missing = [s for s in checkpoints if s not in manifest.streams]
        if missing:
            raise UsageError(
                f"{where} was made without {missing[0]}; leave that checkpoint out, or run "
                "precompute without --no-flow"
            )
        return _Plan(
            manifest.dataset,
            where,
            manifest.classes.names,
            manifest.preset,
            manifest.versions,
            lambda preset: ShardSource(shards, preset),
            decodes_videos=False,
        )
    if options.partial:
        raise UsageError(f"{where} holds no {MANIFEST_FILE}; --partial is for shards")
    dataset = videos.read(progress=progress)
    if dataset.classes is None:
        raise DatasetError(f"{where}: its videos have no labels, so there is no accuracy")
    return _Plan(
        name,
        where,
        dataset.classes.names,
        None,
        {},
        lambda preset: VideoSource(dataset.videos, preset, max_seconds=_seconds(options, preset)),
        decodes_videos=True,
    )


def _seconds(options: Options, preset: Preset) -> float:
    """How much of each video the views are spread over: the ten seconds that shards hold."""
    return max(preset.clip_frames, options.views.frames) / preset.fps


def _network(
    stream: Stream, checkpoint: files.Location | I3D, device: str, *, progress: bool
) -> Network:
    if isinstance(checkpoint, I3D):
        name, model = f"the {checkpoint.stream} network", checkpoint.to(device)
        used = UsedCheckpoint("", model.source, "")
    else:
        name = os.fspath(checkpoint)
        weights = read_weights(resolve(checkpoint, progress=progress))
        digest = fingerprint(weights)
        model = build(weights).fold().to(device)
        used = UsedCheckpoint(name, model.source, digest)
    if model.stream != stream:
        raise CheckpointError(
            f"{name} is a network for {model.stream}; pass it as --{model.stream}-checkpoint"
        )
    return Network(model, used)


def _about(plan: _Plan, networks: Mapping[Stream, Network], options: Options) -> About:
    """What is to be evaluated; refuses networks that do not fit the dataset or each other."""
    presets = {s: n.model.preset for s, n in networks.items()}
    preset = plan.preset or next(iter(presets.values()))
    for stream, network in networks.items():
        model, name = network.model, network.used.name
        if model.num_classes != len(plan.classes) or (
            model.has_class_names and model.classes != plan.classes
        ):
            raise CheckpointError(
                f"{name} tells {model.num_classes} classes apart ({_first(model.classes)}), and "
                f"{plan.where} is labelled with {len(plan.classes)} others "
                f"({_first(plan.classes)}); name --classes of the checkpoint when you prepare the "
                "videos, or another checkpoint"
            )
        if presets[stream] != preset:
            raise CheckpointError(
                f"{name} was made for preset {presets[stream]}, and "
                f"{'the shards' if plan.preset else 'the other checkpoint'} for {preset}"
            )
    libraries = "torch", "numpy", "simplejpeg"
    made_with = {f"shards: {name}": text for name, text in plan.versions.items()}
    return About(
        dataset=plan.dataset,
        classes=plan.classes,
        preset=preset,
        frames=options.views.frames,
        clips=options.views.clips,
        crops=options.views.crops,
        precision=options.precision,
        checkpoints={s: n.used for s, n in networks.items()},
        versions={"i3d": i3d.__version__, **{n: version(n) for n in libraries}, **made_with},
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _workers(workers: int | None, device: str, world: World, *, decodes_videos: bool) -> int:
    share = share_cores(device, world)
    if workers is not None:
        return workers
    return share if device != "cpu" or decodes_videos else min(share, 2)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


# --- the work of one process ----------------------------------------------------------------------


class _Job:
    """This process's videos."""

    def __init__(
        self,
        networks: Mapping[Stream, Network],
        about: About,
        source: Source,
        mine: range,
        parts: Parts | None,
    ) -> None:
        self.networks, self.about, self.source, self.parts = networks, about, source, parts
        self.mine = mine
        self.logits: dict[int, dict[Stream, np.ndarray]] = {}
        self.skipped = {i: UNLABELLED for i in mine if source.labels[i] is None}
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

    def run(self, options: Options, device: str, workers: int, bar: Bar) -> None:
        """Evaluate them."""
        todo = self.todo
        if not todo:
            return
        crop = find_preset(self.about.preset).crop
        self.batch_size = options.batch_size or find_batch_size(
            next(iter(self.networks.values())).model,
            frames=self.about.frames,
            crop=crop,
            precision=options.precision,
        )
        batchers = {
            s: Batcher(
                n.model,
                frames=self.about.frames,
                crop=crop,
                batch_size=self.batch_size,
                precision=options.precision,
            )
            for s, n in self.networks.items()
        }
        videos = load_videos(
            self.source,
            todo,
            streams=list(self.networks),
            views=self.about.views,
            workers=min(workers, len(todo)),
            pin=device.startswith("cuda"),
        )
        written = time.monotonic()
        try:
            for number, video in enumerate(videos, 1):
                if video.error is not None:
                    self.skipped[video.index] = video.error
                else:
                    for batcher in batchers.values():
                        batcher.add(video)
                self._collect(batchers)
                bar.update(number, note=self._note())
                if time.monotonic() - written > PART_SECONDS:
                    self._write()
                    written = time.monotonic()
            for batcher in batchers.values():
                batcher.finish()
            self._collect(batchers)
            bar.update(len(todo), note=self._note())
            self.batch_size = min(batcher.batch_size for batcher in batchers.values())
        finally:
            self._write()  # on Ctrl-C too

    def _collect(self, batchers: Mapping[Stream, Batcher]) -> None:
        """Take the videos of which every stream is done."""
        ready = set.intersection(*(set(batcher.done) for batcher in batchers.values()))
        for i in sorted(ready):
            self.logits[i] = {s: batcher.done.pop(i) for s, batcher in batchers.items()}
            self._unwritten.append(i)
            summed = np.sum(list(self.logits[i].values()), axis=0)
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
            click.echo(f"{error}; it is tried again with the next part", err=True)
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
        return Part(tuple(videos), logits, tuple(sorted(skipped.items())))


# --- the outcome ----------------------------------------------------------------------------------


def _table(source: Source, about: About, parts: Sequence[Part]) -> Predictions:
    """All processes' results in the order of the plan."""
    skipped = tuple(
        sorted(Failure(source.keys[i], reason) for part in parts for i, reason in part.skipped)
    )
    numbers = np.concatenate([np.array(part.videos, np.int64) for part in parts])
    if not len(numbers):
        first = f"{skipped[0].key}: {skipped[0].reason}"
        raise DatasetError(f"none of {len(skipped)} videos could be evaluated; the first, {first}")
    order = np.argsort(numbers)
    targets = [source.labels[i] for i in numbers[order]]
    streams: list[Stream] = [s for s in STREAMS if s in about.checkpoints]
    return Predictions(
        replace(about, found=len(source.keys), skipped=skipped),
        tuple(source.keys[i] for i in numbers[order]),
        np.array(targets, np.int64),
        {s: np.concatenate([part.logits[s] for part in parts])[order] for s in streams},
    )


def _thumbnails(source: Source, evaluation: Evaluation, count: int) -> dict[str, np.ndarray]:
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


def run(
    sources: Sequence[str],
    *,
    rgb_checkpoint: str | None,
    flow_checkpoint: str | None,
    options: Options,
    fused: bool,
    output: str | None,
    report: str | None,
    predictions: str | None,
    resume: bool,
    strict: bool,
    as_json: bool,
    **dataset: Any,
) -> int:
    """``i3d evaluate``: the exit code, 1 if with strict videos were skipped."""
    mistakes = 0
    if report is not None:
        from i3d.tasks.evaluate.page import MISTAKES_SHOWN as mistakes
    if fused:
        if len(sources) < 2 or rgb_checkpoint or flow_checkpoint:
            raise UsageError("--fuse takes two or more predictions files, and no checkpoint")
        joined = fuse([read_predictions(source) for source in sources], sources)
        if predictions is not None:
            write_predictions(predictions, joined)
        result: Evaluated | None = Evaluated(Evaluation(joined))
    else:
        if len(sources) != 1:
            raise UsageError(f"{len(sources)} datasets; evaluate takes one, or --fuse two files")
        given: dict[Stream, str | None] = {"rgb": rgb_checkpoint, "flow": flow_checkpoint}
        result = evaluate(
            VideoSet(sources[0], **dataset),
            {stream: name for stream, name in given.items() if name is not None},
            options=options,
            predictions=predictions,
            resume=resume,
            thumbnails=mistakes,
            progress=True,
        )
    if result is None:
        return 0
    evaluation = result.evaluation
    show(evaluation, as_json=as_json)  # first: a file that cannot be written costs no figures
    if output is not None:
        text = json.dumps(evaluation.as_dict(), indent=2, ensure_ascii=False) + "\n"
        files.write(output, text.encode())
    if report is not None:
        from i3d.tasks.evaluate.page import write_page

        write_page(evaluation, report, thumbnails=result.thumbnails)
    for location in (output, report, predictions):
        if location is not None:
            click.echo(f"wrote {location}", err=True)
    return 1 if strict and evaluation.predictions.about.skipped else 0
