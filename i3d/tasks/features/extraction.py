"""Features of videos of any length: sliding windows through an RGB network, a flow network or both.

    videos or shards --rank r: every world-th video--> workers decode, flow once a pair, crop
      --chunks of uint8--> windows on the device --> network --> rows --> a file a video

    frame    0   1   2   3   4   5   6   7   8 ...
    window   |------- 0 -------|
                     |------- 1 -------|              --window, --step
    flow     0   1   2   3   4   5   6   7            between frame k and k + 1

A window's flow begins at its first frame and is as long, so it reaches to the frame after the
window; a window that ends with the video lacks that one, and its flow is looped from its start, as
the test clip's is. Both streams of a row so see the same stretch at the same length.

Every video is streamed: what is in memory does not depend on its length. Windows of different
videos never share a batch, so a video's bytes do not depend on the others, nor on which process
had it. No process waits for another.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from math import floor
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

import click
import numpy as np
import torch

import i3d
from i3d import files
from i3d.clips import Views, flow_clip, loop_frames, rgb_clip
from i3d.console import Bar, progress_bar, show
from i3d.data.kinetics import VIDEO_SUFFIXES, Video, read_dataset
from i3d.data.reading.chunks import (
    CHUNK_FRAMES,
    Chunk,
    ChunkSource,
    ShardChunks,
    VideoChunks,
    load_chunks,
)
from i3d.data.reading.clips import clip_bytes
from i3d.data.shards import MANIFEST_FILE, ShardDataset, open_dataset
from i3d.errors import CheckpointError, DatasetError, I3DError, UsageError
from i3d.models.checkpoints import build, fingerprint, read_weights, resolve
from i3d.models.i3d import ENDPOINTS, I3D
from i3d.parallel.ahead import check_shared_memory
from i3d.parallel.process import share_cores, terminated_cleanly
from i3d.parallel.world import World, world_from_environment
from i3d.presets import MIN_FRAMES, STREAMS, Preset, Stream, find_preset
from i3d.tasks.evaluate.predictions import UsedCheckpoint
from i3d.tasks.features.files import (
    MERGED,
    FeatureFolder,
    FeatureSettings,
    Rows,
    VideoAbout,
    compare,
    merge,
    output_format,
    read_merged_about,
)
from i3d.tasks.network import AUTOCAST, Precision, check_precision, choose_device
from i3d.tasks.precompute.writing import VideoSet

WINDOW = "64"  # frames: the snippets that the networks were trained on
GPU_FRAMES = 512  # in a batch: 8 windows of 64; about 3 GB, estimated from the layers' sizes
TIME_STRIDE = 8  # frames between time steps of Mixed_5c, two of which a feature averages

Rest = Literal["drop", "keep"]
Short = Literal["loop", "error"]


class Purpose(NamedTuple):
    """What the programs of a field read: settings that go together."""

    window: str
    step: str
    streams: tuple[Stream, ...]  # that must be there

    endpoint: str = "clip"
    format: str = "npy"


# Sources: docs/features.md
PURPOSES = {
    # ActionFormer's THUMOS features: 16 frames every 4, RGB beside flow, T x 2048
    "localization": Purpose("16", "4", ("rgb", "flow")),
    # XDVioDet, UR-DMU: 16 frames, no overlap, T x 1024 a stream
    "anomaly": Purpose("16", "16", ()),
}


@dataclass(frozen=True)
class Options:
    """What to compute, and how.

    Attributes:
        endpoint: ``clip`` (features averaged over the window: 1024), ``steps`` (a row for every
            time step), or a layer's name, ``Logits`` and ``Predictions`` included.
        window: length in frames (``"64"``) or seconds (``"2.5s"``).
        step: from start to start, likewise; None: the window.
        rest: ``drop`` leaves out frames after the last whole window, ``keep`` adds a window that
            ends with the video.
        short: a video shorter than a window is repeated (``loop``) or refused (``error``).
        format: ``npz`` or ``npy`` in a folder; None: by the output's suffix, else ``npz``.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        batch_size: windows at a time; None: 1 on a CPU, `GPU_FRAMES` frames on CUDA.
        workers: processes that read and decode, of each process; None: its share of the cores, at
            most two where the network needs them itself.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        partial: take shards of which some are missing.
    """

    endpoint: str = "clip"
    window: str = WINDOW
    step: str | None = None
    rest: Rest = "drop"
    short: Short = "loop"
    format: str | None = None
    precision: Precision = "fp32"
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    partial: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.endpoint not in ("clip", "steps", *ENDPOINTS):
            raise UsageError(
                f"endpoint {self.endpoint!r}: there are clip, steps, {', '.join(ENDPOINTS)}"
            )
        if self.rest not in get_args(Rest) or self.short not in get_args(Short):
            raise UsageError(
                f"rest {self.rest!r} is drop or keep, short {self.short!r} loop, error"
            )
        if self.format not in (None, "npz", "npy", *MERGED.values()):
            raise UsageError(f"format {self.format!r}: there are npz, npy, parquet and hdf5")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: it must be at least 1, or auto")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers {self.workers}: it must be 0 or more")
        for name in ("window", "step"):
            if getattr(self, name) is not None:
                _length(name, getattr(self, name), fps=1)

    def window_frames(self, fps: int) -> int:
        """Frames of a window.

        Raises:
            UsageError: fewer than the network needs.
        """
        frames = round(_length("window", self.window, fps=fps))
        if frames < MIN_FRAMES:
            raise UsageError(
                f"window {self.window}: the network needs at least {MIN_FRAMES} frames"
            )
        return frames

    def step_frames(self, fps: int) -> Fraction:
        """Frames from start to start; a step in seconds may fall between two frames.

        Raises:
            UsageError: less than a frame.
        """
        step = _length("step", self.step or self.window, fps=fps)
        if step < 1:
            raise UsageError(f"step {self.step}: it must be at least one frame, 1/{fps} s")
        return step


def _length(name: str, text: str, *, fps: int) -> Fraction:
    """``"64"`` or ``"2.5s"`` in frames."""
    match = re.fullmatch(r"(\d{1,7})|(\d{1,5}(?:\.\d{1,6})?) ?s", text)
    if match is None:
        raise UsageError(f"{name} {text!r}: give frames, as 64, or seconds, as 2.5s")
    return Fraction(match[1]) if match[1] else Fraction(match[2]) * fps


@dataclass(frozen=True)
class Extracted:
    """What a run did, for a person (``str``) or a machine (:meth:`as_dict`).

    Attributes:
        output: file or folder.
        found: videos of this process: done + skipped.
        done: of these, with features.
        already: of the done, those that were there before.
        skipped: (video, reason) of those without.
        rows: written in this run.
        frames: read in this run.
        seconds: of this run.
        complete: whether the videos of all processes have an outcome, and one file is written.
        processes: in all.
    """

    output: str
    found: int
    done: int
    already: int
    skipped: tuple[tuple[str, str], ...]
    rows: int
    frames: int
    seconds: float
    complete: bool
    processes: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        skipped = [{"video": video, "reason": reason} for video, reason in self.skipped]
        return {**asdict(self), "skipped": skipped}

    def __str__(self) -> str:
        rate = self.frames / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.output}: {self.done} of {self.found} videos done, {self.already} of them "
            f"before; {len(self.skipped)} skipped",
            f"  {self.rows} rows from {self.frames} frames in {self.seconds:.1f} s, "
            f"{rate:.0f} frames/s",
        ]
        if self.processes > 1:
            others = "all are done" if self.complete else "others are at work"
            lines.append(f"  one of {self.processes} processes; {others}")
        lines += [f"  skipped {video}: {reason}" for video, reason in self.skipped[:10]]
        if len(self.skipped) > 10:
            lines.append(f"  ... and {len(self.skipped) - 10} more, all of them in the output")
        return "\n".join(lines)


def extract(
    videos: files.Location | VideoSet,
    output: files.Location,
    checkpoints: Sequence[files.Location],
    *,
    options: Options = Options(),
    world: World | None = None,
    progress: bool = False,
) -> Extracted:
    """Compute features; what is there already is not computed again.

    Args:
        videos: folder, list or file of videos, or folder of shards; path or URL.
        output: folder, or ``.parquet``, ``.h5`` or ``.hdf5`` file; path or URL.
        checkpoints: names, paths or URLs (:func:`i3d.load`) of an RGB network, a flow network or
            both.
        options: what and how.
        world: which videos are this process's; default: from the launcher's environment.
        progress: draw a progress bar.

    Raises:
        DatasetError: the dataset cannot be understood, or no video of it has features.
        CheckpointError: a checkpoint cannot be loaded, or they do not fit together.
        UsageError: an option has no meaning, or the output was begun with other settings.
        I3DError: the storage fails or a worker dies.
    """
    start = time.monotonic()
    world = world_from_environment() if world is None else world
    form, container = output_format(output, options.format)
    device = choose_device(options.device, local_rank=world.local_rank)
    progress_here = progress and world.first
    plan = _open(videos, options, progress=progress_here)
    networks, used = _networks(checkpoints, device, progress=progress_here)
    settings = _settings(plan, networks, used, options, container)
    source = plan.source(find_preset(settings.preset))
    mine = world.turns(len(source.keys))
    location = os.fspath(output)
    if form != container and files.exists(output):
        return _from_merged(location, settings, len(source.keys), world, start)
    place = location if form == container else f"{location}.parts"
    folder = FeatureFolder(place, settings, source.keys)
    folder.begin()
    before = folder.done()
    todo = [i for i in mine if i not in before]
    job = _Job(networks, settings, options, source, folder, device)
    if todo:
        title = world.title("features")
        workers, threads = _workers(options, device, world, plan, networks, len(todo))
        with (
            terminated_cleanly(),
            progress_bar(title if progress_here else None, total=len(todo), unit="videos") as bar,
        ):
            job.run(todo, workers, threads, bar)
    complete = _finish(folder, output, form)
    return Extracted(
        output=location,
        found=len(mine),
        done=len(mine) - len(job.failed),
        already=len(mine) - len(todo),
        skipped=tuple((source.keys[i], reason) for i, reason in sorted(job.failed.items())),
        rows=job.rows,
        frames=job.frames,
        seconds=time.monotonic() - start,
        complete=complete,
        processes=world.size,
    )


def _finish(folder: FeatureFolder, output: files.Location, form: str) -> bool:
    """Do what is left when every video has an outcome; whether they all have."""
    one_file = form != folder.settings.container
    try:
        if not folder.finish():
            return one_file and files.exists(output)
        if not folder.done():
            i, reason = min(folder.failures().items())
            raise DatasetError(
                f"none of {len(folder.keys)} videos has features; the first, {folder.keys[i]}: "
                f"{reason}"
            )
        if one_file:
            merge(folder, output, form)
            files.remove_folder(folder.folder)
    except FileNotFoundError:
        if not (one_file and files.exists(output)):  # another process was quicker
            raise
    return True


def _from_merged(
    output: str, settings: FeatureSettings, found: int, world: World, start: float
) -> Extracted:
    """What a file that is finished says of itself."""
    about = read_merged_about(output)
    compare(about, settings, output)
    if about["found"] != found:
        raise UsageError(
            f"{output} is of {about['found']} videos, and now there are {found}; name another file"
        )
    skipped = tuple((str(s["video"]), str(s["reason"])) for s in about["skipped"])
    return Extracted(
        output=output,
        found=found,
        done=found - len(skipped),
        already=found - len(skipped),
        skipped=skipped,
        rows=0,
        frames=0,
        seconds=time.monotonic() - start,
        complete=True,
        processes=world.size,
    )


# --- what is read, and by what --------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Videos before their networks are known.

    Attributes:
        dataset: its name.
        where: its path, for messages.
        preset: the shards' preprocessing; None for videos, which take the networks'.
        streams: that there are.
        versions: of what made the shards.
        videos: None for shards.
        shards: None for videos.
    """

    dataset: str
    where: str
    preset: str | None
    streams: tuple[Stream, ...]
    versions: Mapping[str, str]
    videos: tuple[Video, ...] | None = None
    shards: ShardDataset | None = None

    def source(self, preset: Preset) -> ChunkSource:
        """The pixels."""
        if self.shards is not None:
            return ShardChunks(self.shards, preset)
        return VideoChunks(self.videos or (), preset, root=self.where)


def _open(videos: files.Location | VideoSet, options: Options, *, progress: bool) -> _Plan:
    videos = videos if isinstance(videos, VideoSet) else VideoSet(videos)
    where = os.fspath(videos.location).rstrip("/")
    name = where.rpartition("/")[2] or "videos"
    stem, dot, suffix = name.rpartition(".")
    if files.exists(files.join(where, MANIFEST_FILE)):
        if videos != VideoSet(videos.location):
            raise UsageError(
                f"{where} holds shards; annotations, layout, split and trim are for videos"
            )
        shards = open_dataset(where, partial=options.partial)
        made = shards.manifest
        return _Plan(made.dataset, where, made.preset, made.streams, made.versions, shards=shards)
    if options.partial:
        raise UsageError(f"{where} holds no {MANIFEST_FILE}; --partial is for shards")
    if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES and not files.is_dir(where):
        # As the keys of i3d.data.kinetics are made.
        key = quote(stem, safe=" _-~'()", errors="surrogateescape").replace(".", "%2E")
        only = Video(key, where)
        return _Plan(name, where.rpartition("/")[0], None, STREAMS, {}, (only,))
    dataset = read_dataset(
        videos.location,
        annotations=videos.annotations,
        layout=videos.layout,
        split=videos.split,
        trim=videos.trim,
        labels="optional",
    )
    if progress:
        click.echo(dataset.description, err=True)
    missing = [f"{len(dataset.missing)} annotated videos have no file"] if dataset.missing else []
    for warning in (*dataset.warnings, *missing):
        if progress:
            click.echo(f"warning: {warning}", err=True)
        else:
            warnings.warn(warning, stacklevel=3)
    if not dataset.videos:
        raise DatasetError(f"{where}: no videos")
    return _Plan(name, where, None, STREAMS, {}, dataset.videos)


def _networks(
    checkpoints: Sequence[files.Location], device: str, *, progress: bool
) -> tuple[dict[Stream, I3D], dict[Stream, UsedCheckpoint]]:
    """The networks by stream, RGB first, and what to say of them."""
    networks: dict[Stream, I3D] = {}
    used: dict[Stream, UsedCheckpoint] = {}
    if not checkpoints:
        raise UsageError("no checkpoint; name an RGB one, a flow one or both")
    for checkpoint in checkpoints:
        weights = read_weights(resolve(checkpoint, progress=progress))
        model = build(weights).fold().to(device)
        name = os.fspath(checkpoint).rstrip("/").rpartition("/")[2]  # no absolute path in a file
        if model.stream in networks:
            raise UsageError(
                f"{used[model.stream].name} and {name} are both for {model.stream}; features take "
                "one network a stream"
            )
        networks[model.stream] = model
        used[model.stream] = UsedCheckpoint(name, model.source, fingerprint(weights))
    order = [stream for stream in STREAMS if stream in networks]
    return {s: networks[s] for s in order}, {s: used[s] for s in order}


def _settings(
    plan: _Plan,
    networks: Mapping[Stream, I3D],
    used: Mapping[Stream, UsedCheckpoint],
    options: Options,
    container: str,
) -> FeatureSettings:
    """What is to be computed; refuses networks that do not fit the dataset or each other."""
    first = next(iter(networks.values()))
    expected = plan.preset or first.preset
    for stream, model in networks.items():
        if stream not in plan.streams:
            raise UsageError(
                f"{plan.where} was made without {stream}; leave that checkpoint out, or run "
                "precompute without --no-flow"
            )
        if model.preset != expected:
            raise CheckpointError(
                f"{used[stream].name} was made for preset {model.preset}, and "
                f"{'the shards' if plan.preset else 'the other checkpoint'} for {expected}"
            )
    scores = options.endpoint in ("Logits", "Predictions")
    if scores and any(model.classes != first.classes for model in networks.values()):
        raise CheckpointError("the checkpoints tell other classes apart; run each by itself")
    fps = find_preset(expected).fps
    libraries = "torch", "numpy", "simplejpeg" if plan.videos is None else "av"
    versions = {"i3d": i3d.__version__, **{name: version(name) for name in libraries}}
    if plan.videos is not None:
        import av
        import cv2

        versions["libavcodec"] = ".".join(map(str, av.library_versions["libavcodec"]))
        versions["opencv"] = cv2.__version__
        if "flow" in networks:
            versions["numba"] = version("numba")
    return FeatureSettings(
        dataset=plan.dataset,
        container=container,
        preset=expected,
        fps=fps,
        endpoint=options.endpoint,
        classes=first.classes if scores else (),
        window_frames=options.window_frames(fps),
        step_frames=float(options.step_frames(fps)),
        rest=options.rest,
        short=options.short,
        precision=options.precision,
        checkpoints={str(stream): network for stream, network in used.items()},
        versions={**versions, **{f"shards: {name}": v for name, v in plan.versions.items()}},
    )


def _workers(
    options: Options,
    device: str,
    world: World,
    plan: _Plan,
    networks: Mapping[Stream, I3D],
    videos: int,
) -> tuple[int, int]:
    """(processes that read, threads of each one's flow)."""
    share = share_cores(device, world)
    computes_flow = plan.videos is not None and "flow" in networks
    workers = options.workers
    if workers is None:
        workers = share if device != "cpu" or computes_flow else min(share, 2)
    workers = min(workers, videos)
    preset = find_preset(plan.preset or next(iter(networks.values())).preset)
    size = clip_bytes(Views(frames=CHUNK_FRAMES), preset)
    check_shared_memory(size, workers=workers, processes=world.local_size)
    return workers, max(1, share // max(1, workers))


# --- the work of one process ----------------------------------------------------------------------


class _Job:
    """This process's videos."""

    def __init__(
        self,
        networks: Mapping[Stream, I3D],
        settings: FeatureSettings,
        options: Options,
        source: ChunkSource,
        folder: FeatureFolder,
        device: str,
    ) -> None:
        self.networks, self.settings, self.options = networks, settings, options
        self.source, self.folder, self.device = source, folder, device
        default = max(1, GPU_FRAMES // settings.window_frames) if device != "cpu" else 1
        self.batch_size = options.batch_size or default
        self.rows = self.frames = 0
        self.failed: dict[int, str] = {}
        self._open: dict[int, _Video] = {}

    def run(self, todo: Sequence[int], workers: int, threads: int, bar: Bar) -> None:
        """Compute them; a video is written when it ends."""
        chunks = load_chunks(
            self.source,
            todo,
            streams=list(self.networks),
            workers=workers,
            threads=threads,
            pin=self.device.startswith("cuda"),
        )
        start, done = time.monotonic(), 0
        try:
            for chunk in chunks:
                done += self._take(chunk)
                rate = self.frames / (time.monotonic() - start)
                bar.update(done, note=f"{rate:.0f} frames/s")
        finally:
            for video in self._open.values():
                video.close()

    def _take(self, chunk: Chunk) -> bool:
        """Work on a chunk; whether its video has an outcome now."""
        i = chunk.video
        if i not in self._open:
            self._open[i] = _Video(self)
        video = self._open[i]
        self.frames += chunk.frames
        reason = chunk.error
        if reason is None:
            video.add(chunk)
            if not chunk.last:
                return False
            reason = video.refusal()
        if reason is None:
            self.rows += video.write(i, chunk.damage)
        else:
            self.folder.fail(i, reason)
            self.failed[i] = reason
        self._open.pop(i).close()
        return True


class _Video:
    """A video in the middle of its work: its windows of every stream."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.frames = 0
        self.streams = {
            stream: _Windows(model, job.settings, job.options, job.batch_size, job.device)
            for stream, model in job.networks.items()
        }

    def add(self, chunk: Chunk) -> None:
        """Take a chunk's pixels."""
        self.frames += chunk.frames
        for stream, pixels in chunk.pixels.items():
            self.streams[stream].add(pixels)

    def refusal(self) -> str | None:
        """Why a video that was read to its end has no features."""
        settings = self.job.settings
        if self.frames < 2 and "flow" in self.streams:
            return "a video of one frame has no flow"
        if self.frames < settings.window_frames and settings.short == "error":
            return (
                f"{self.frames} frames are fewer than the window's {settings.window_frames}, and "
                "short videos are refused"
            )
        return None

    def write(self, i: int, damage: str | None) -> int:
        """Compute the last windows and write the file: the number of rows."""
        job, settings = self.job, self.job.settings
        for windows in self.streams.values():
            windows.finish(self.frames)
        starts = next(iter(self.streams.values())).starts
        looped = self.frames < settings.window_frames
        spans = row_spans(starts, settings, self.frames)
        about = VideoAbout(
            video=job.source.keys[i],
            source=job.source.sources[i],
            frames=self.frames,
            seconds=self.frames / settings.fps,
            looped=looped,
            damage=damage,
        )
        job.folder.write(i, about, spans, {s: w.rows for s, w in self.streams.items()})
        return len(spans)

    def close(self) -> None:
        """Give the temporary files' room back."""
        for windows in self.streams.values():
            windows.rows.close()


def row_spans(starts: Sequence[int], settings: FeatureSettings, frames: int) -> np.ndarray:
    """Which stretch of the video every row is of, in seconds: float64 (rows, 2).

    A row of a window is of all of it. A time step averages two neighbouring positions of Mixed_5c,
    which are 8 frames apart: step j is of frames 8 j to 8 j + 16 of its window, or to its end.
    (Its receptive field is wider: 107 frames.) A looped video's rows are all of the whole.
    """
    window = settings.window_frames
    inner = [(0, window)]
    if settings.endpoint == "steps":
        steps = -(-window // TIME_STRIDE) - 1
        inner = [(j * TIME_STRIDE, min((j + 2) * TIME_STRIDE, window)) for j in range(steps)]
    spans = [(start + a, start + b) for start in starts for a, b in inner]
    if frames < window:
        spans = [(0, frames)] * len(spans)
    return np.array(spans, np.float64).reshape(-1, 2) / settings.fps


class _Windows:
    """One stream of one video: frames come in, rows go out, a window and a chunk are kept.

    Attributes:
        rows: computed so far.
        starts: first frame of every window.
    """

    def __init__(
        self,
        model: I3D,
        settings: FeatureSettings,
        options: Options,
        batch_size: int,
        device: str,
    ) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.window, self.batch_size = settings.window_frames, batch_size
        self.step = options.step_frames(settings.fps)
        self.rows = Rows()
        self.starts: list[int] = []
        self._kept = torch.empty(0)  # uint8 (t, crop, crop, C), frames `_first` and on
        self._first = 0
        self._clips: list[torch.Tensor] = []

    @property
    def _next(self) -> int:
        """First frame of the next window: a step in seconds is rounded for each, halves up."""
        return floor(len(self.starts) * self.step + Fraction(1, 2))

    @property
    def _have(self) -> int:
        return self._first + len(self._kept)

    def add(self, pixels: torch.Tensor) -> None:
        """Take the next frames, uint8 (t, crop, crop, C); run the batches that become full."""
        pixels = pixels.to(self.device, non_blocking=True)
        self._kept = torch.cat([self._kept, pixels]) if len(self._kept) else pixels
        while self._next + self.window <= self._have:
            self._cut(self._next)
        # What may still be needed: from the next window on, or the last one's length.
        needed = self._next
        if self.settings.rest == "keep":
            needed = min(needed, self._have - self.window)
        unneeded = min(max(needed - self._first, 0), len(self._kept))
        self._kept = self._kept[unneeded:]
        self._first += unneeded

    def finish(self, frames: int) -> None:
        """Compute what is left of a video of so many frames."""
        while self._next + self.window <= frames:  # flow, which lacks the last one
            self._cut(self._next)
        if frames < self.window:
            self._cut(0)
        elif self.settings.rest == "keep" and self.starts[-1] + self.window < frames:
            self._cut(frames - self.window)
        self._run()

    def _cut(self, start: int) -> None:
        part = self._kept[start - self._first :][: self.window]
        to_clip = rgb_clip if self.model.stream == "rgb" else flow_clip
        looped = loop_frames(part, self.window)
        self._clips.append(to_clip(looped, crop=looped.shape[1]))
        self.starts.append(start)
        if len(self._clips) == self.batch_size:
            self._run()

    def _run(self) -> None:
        if not self._clips:
            return
        try:
            rows = activations(
                self.model, torch.stack(self._clips), self.settings.endpoint, self._precision
            )
        except torch.cuda.OutOfMemoryError:
            raise I3DError(
                f"{len(self._clips)} windows of {self.window} frames do not fit into the memory of "
                f"{self.device}; use a smaller --batch-size"
            ) from None
        self.rows.add(rows)
        self._clips = []

    @property
    def _precision(self) -> Precision:
        return check_precision(self.settings.precision)


def activations(
    model: I3D, clips: torch.Tensor, endpoint: str, precision: Precision = "fp32"
) -> np.ndarray:
    """Rows of clips (B, C, T, H, W) on the model's device, float32.

    Returns:
        ``clip``: (B, 1024), the features' mean over time, which the classifier sees;
        ``steps``: (B x T', 1024); ``Logits``, ``Predictions``: (B, num_classes); a layer:
        (B, C, T', H', W').
    """
    enabled = precision != "fp32"
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        torch.autocast(clips.device.type, dtype=AUTOCAST.get(precision), enabled=enabled),
    ):
        if endpoint == "clip":
            rows = model.features(clips).mean(2)
        elif endpoint == "steps":
            rows = model.features(clips).transpose(1, 2).flatten(0, 1)  # (B, C, T') -> (B T', C)
        else:
            rows = model.endpoints(clips, [endpoint])[endpoint]
    return rows.float().cpu().numpy()


def run(
    location: str,
    output: str,
    *,
    checkpoints: Sequence[str],
    purpose: str | None,
    chosen: Mapping[str, Any],
    strict: bool,
    as_json: bool,
    **dataset: Any,
) -> int:
    """``i3d features``: the exit code, 1 if with strict videos were skipped.

    Args:
        location: of the videos or shards.
        output: file or folder.
        checkpoints: one or two.
        purpose: of `PURPOSES`; what is chosen goes before it.
        chosen: fields of `Options`; None where nothing was said.
        strict: skipped videos are a failure.
        as_json: print JSON.
        dataset: fields of `VideoSet`.
    """
    given = {name: value for name, value in chosen.items() if value is not None}
    if purpose is not None:
        ready = PURPOSES[purpose]
        streams = {s: getattr(ready, s) for s in ("window", "step", "endpoint", "format")}
        given = {**streams, **given}
        if len(ready.streams) > len(checkpoints):
            raise UsageError(
                f"--for {purpose} is RGB beside flow; name a --checkpoint of each, or say --window "
                f"{ready.window} --step {ready.step} --format {ready.format} yourself"
            )
    result = extract(
        VideoSet(location, **dataset),
        output,
        checkpoints,
        options=replace(Options(), **given),
        progress=True,
    )
    show(result, as_json=as_json)
    return 1 if strict and result.skipped else 0
