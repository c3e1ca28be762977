"""A directory of videos -> shards of RGB frames and TV-L1 flow, in parallel and resumable.

    videos --read_dataset--> plan (manifest.json) --rank r: shards r, r + world, ...-->
      workers: decode, resize, flow, encode --in the plan's order--> shard-00000.tar + .json

With a GPU the flow has a process of its own, and each video passes through it:

      workers: decode, resize, gray, JPEG --> GPU: flow of several videos --> workers: PNG

The plan depends on the data and the settings alone, and every step is deterministic, so any number
of workers, processes and nodes gives the same bytes. A shard and its sidecar appear under their
names when they are whole; what is there is not made again. No process waits for another.
"""

import errno
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any

import click

import i3d
from i3d import files
from i3d.console import Bar, progress_bar, show
from i3d.data.kinetics import Dataset, Layout, Video, read_dataset
from i3d.data.shards import (
    CLIPS_PER_SHARD,
    Manifest,
    Pictures,
    PictureWriter,
    PlannedSample,
    ShardWriter,
    complete_shards,
    finish_folder,
    plan_shards,
    shard_failures,
    write_manifest,
    write_shard,
)
from i3d.data.shards.pictures import (
    RGB_QUALITY,
    encode_flow,
    encode_rgb,
    encoding_parameters,
    encoding_versions,
)
from i3d.errors import I3DError, UsageError, VideoError
from i3d.flow import TVL1, check_device, flow_kernel, stream_flow
from i3d.parallel.pool import (
    Died,
    Failed,
    Outcome,
    Result,
    Stage,
    WorkerPool,
    temporary_file,
)
from i3d.parallel.process import checked_workers, terminated_cleanly
from i3d.parallel.world import World, world_from_environment
from i3d.presets import KINETICS_I3D, Preset, Stream, preset_with_short_side

# One thread in each library inside a worker, so that N workers load N cores.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
AHEAD = 3  # videos begun per worker beyond the one that is written next
VIDEOS_TOGETHER = 4  # on the GPU at the same time, at most: a thousand pairs keep it busy


@dataclass(frozen=True)
class VideoSet:
    """Which videos, and what they are: the arguments of :func:`i3d.data.kinetics.read_dataset`.

    Attributes:
        location: folder, list file or CSV; path or URL.
        classes: ``kinetics400``, ``kinetics600``, ``folders`` or a file of names.
        annotations: CSV of a flat folder of videos.
        layout: how the dataset lies on disk, where it is not to be found out.
        split: of a dataset that has several.
        trim: cut untrimmed videos by the CSV's times.
    """

    location: files.Location
    classes: str | None = None
    annotations: files.Location | None = None
    layout: Layout | None = None
    split: str | None = None
    trim: bool = False

    def read(self, *, progress: bool) -> Dataset:
        """Read the dataset and, with progress, say what was understood.

        Raises:
            DatasetError: it cannot be understood.
        """
        dataset = read_dataset(
            self.location,
            classes=self.classes,
            annotations=self.annotations,
            layout=self.layout,
            split=self.split,
            trim=self.trim,
            # Videos without any labels are a dataset for features, where it is asked for.
            labels="optional" if self.layout == "flat" else "required",
        )
        if progress:
            click.echo(dataset.description, err=True)
        for warning in dataset.warnings:
            if progress:
                click.echo(f"warning: {warning}", err=True)
            else:
                warnings.warn(warning, stacklevel=3)
        return dataset


@dataclass(frozen=True)
class Settings:
    """What changes the bytes of the shards; all of it stands in the manifest.

    Attributes:
        flow: compute TV-L1 flow.
        short_side: pixels of the shorter side.
        max_seconds: of each video, from its start; 0 for all of it. The test protocol looks at 10.
        rgb_quality: JPEG quality of the frames, 1 to 100.
        clips_per_shard: videos in one shard.
        seed: of the shuffle that mixes the classes.
    """

    flow: bool = True
    short_side: int = KINETICS_I3D.short_side
    max_seconds: float = KINETICS_I3D.clip_frames / KINETICS_I3D.fps
    rgb_quality: int = RGB_QUALITY
    clips_per_shard: int = CLIPS_PER_SHARD
    seed: int = 0

    def __post_init__(self) -> None:
        if self.short_side < 16:
            raise UsageError(f"short side {self.short_side}: it must be at least 16 pixels")
        if not 0 <= self.max_seconds < 1e9:
            raise UsageError(f"max seconds {self.max_seconds}: it must be 0 (all) or more")
        if not 1 <= self.rgb_quality <= 100:
            raise UsageError(f"quality {self.rgb_quality}: JPEG's goes from 1 to 100")

    @property
    def preset(self) -> Preset:
        """The preprocessing that these settings are."""
        return preset_with_short_side(self.short_side)


# --- the work on one video, in a worker process ---------------------------------------------------


@dataclass(frozen=True)
class VideoTask:
    """What a worker process needs to know."""

    location: str
    start_seconds: float | None
    end_seconds: float | None
    settings: Settings


def video_task(sample: PlannedSample, location: str, settings: Settings) -> VideoTask:
    """The task of a planned sample whose file is at ``location``."""
    return VideoTask(location, sample.start_seconds, sample.end_seconds, settings)


NO_PICTURES = Pictures((), ())


@dataclass(frozen=True)
class EncodedVideo:
    """What a worker found; the pictures are in the files of its `Result`, RGB before flow.

    Attributes:
        height: of the resized frames, pixels.
        width: likewise.
        rgb: sizes and checksums of the frames.
        flow: of the flows; None without.
        damage: what was lost of a damaged video, or None.
        error: why the video cannot be used; the rest is then empty, and there are no files.
    """

    height: int = 0
    width: int = 0
    rgb: Pictures = NO_PICTURES
    flow: Pictures | None = None
    damage: str | None = None
    error: str | None = None


def encode_video(task: VideoTask) -> Result:
    """Decode, resize, compute flow and encode one video.

    The frames flow through one by one, so memory does not depend on the video's length.
    """
    from i3d.clips import quantize_flow

    flow = PictureWriter(temporary_file())

    def follow(frames: Iterator[Any]) -> None:
        for vectors in stream_flow(frames):
            flow.add(encode_flow(quantize_flow(vectors[None])[0]))

    video, files = _encode_frames(task, follow if task.settings.flow else _exhaust, flow.file)
    if files and task.settings.flow:
        video = replace(video, flow=flow.pictures)
    return Result(video, files)


def decode_video(task: VideoTask) -> Result:
    """Decode, resize and encode the frames of one video, whose flow is computed elsewhere.

    Files: the encoded frames; all frames in gray, uint8 (T, H, W).
    """
    import cv2

    gray = temporary_file()

    def follow(frames: Iterator[Any]) -> None:
        for frame in frames:
            gray.write(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).data)

    return Result(*_encode_frames(task, follow, gray))


def _exhaust(frames: Iterator[Any]) -> None:
    for _ in frames:
        pass


def _encode_frames(
    task: VideoTask, follow: Callable[[Iterator[Any]], None], second: IO[bytes]
) -> tuple[EncodedVideo, tuple[IO[bytes], ...]]:
    """Decode, resize and encode the frames, each of which ``follow`` gets, too.

    Returns:
        What was found, and the files: the encoded frames and ``second``, which ``follow`` fills.
    """
    import cv2

    from i3d.video import VideoReader

    cv2.setNumThreads(1)
    settings = task.settings
    start, end = task.start_seconds or 0.0, task.end_seconds
    if settings.max_seconds:
        longest = start + settings.max_seconds
        end = longest if end is None else min(end, longest)
    rgb = PictureWriter(temporary_file())
    shape = (0, 0)
    try:
        with VideoReader(
            task.location, start_seconds=start, end_seconds=end, short_side=settings.short_side
        ) as reader:

            def frames() -> Iterator[Any]:
                nonlocal shape
                previous, jpeg = None, b""
                for frame in reader:
                    if frame is not previous:  # one that is shown again is encoded once
                        previous, jpeg = frame, encode_rgb(frame, quality=settings.rgb_quality)
                        shape = frame.shape[:2]
                    rgb.add(jpeg)
                    yield frame

            follow(frames())
            damage = reader.damage
    except VideoError as error:
        rgb.file.close()
        second.close()
        return EncodedVideo(error=str(error)), ()
    height, width = shape
    return EncodedVideo(height, width, rgb.pictures, damage=damage), (rgb.file, second)


# --- flow on a GPU, in a process of its own -------------------------------------------------------


def flow_videos(results: list[Result], *, device: str) -> list[Result]:
    """The flow of videos that `decode_video` decoded.

    Files: the encoded frames as they came; all flow as it is stored, uint8 (T-1, H, W, 2).
    """
    import numpy as np

    from i3d.clips import quantize_flow
    from i3d.flow.batch import flow_batches

    videos = [result for result in results if result.files]
    gray = []
    for result in videos:
        video: EncodedVideo = result.value
        shape = len(video.rgb), video.height, video.width
        gray.append(np.memmap(result.files[1], np.uint8, "r", shape=shape))
    stored = [temporary_file() for _ in videos]
    for number, flow in flow_batches(gray, device=device):
        stored[number].write(quantize_flow(flow).cpu().numpy().data)
    files = iter(stored)
    return [Result(r.value, (r.files[0], next(files)) if r.files else ()) for r in results]


def encode_flows(results: list[Result]) -> list[Result]:
    """Encode what `flow_videos` stored: the same result as `encode_video`'s."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    encoded = []
    for result in results:
        if not result.files:
            encoded.append(result)
            continue
        video, (rgb, stored) = result.value, result.files
        flow = PictureWriter(temporary_file())
        for _ in range(len(video.rgb) - 1):
            pixels = np.frombuffer(stored.read(video.height * video.width * 2), np.uint8)
            flow.add(encode_flow(pixels.reshape(video.height, video.width, 2)))
        encoded.append(Result(replace(video, flow=flow.pictures), (rgb, flow.file)))
    return encoded


def open_pool(settings: Settings, *, workers: int, device: str) -> WorkerPool[VideoTask]:
    """The processes that turn a `VideoTask` into an `EncodedVideo`."""
    if device == "cpu" or not settings.flow:
        return WorkerPool(encode_video, workers=workers, environment=WORKER_ENVIRONMENT)
    on_gpu = Stage(partial(flow_videos, device=device), own=1, together=VIDEOS_TOGETHER)
    return WorkerPool(
        decode_video,
        workers=workers,
        environment=WORKER_ENVIRONMENT,
        then=(on_gpu, Stage(encode_flows)),
    )


# --- the plan -------------------------------------------------------------------------------------


def plan(
    dataset: Dataset, root: files.Location, settings: Settings, *, device: str = "cpu"
) -> Manifest:
    """The manifest of a dataset under settings; it depends on nothing else.

    The GPU's flow can differ from the CPU's, so the manifest names its kernel.
    """
    samples = [
        PlannedSample(
            key=video.key,
            location=_relative(video.location, root),
            class_index=video.index,
            start_seconds=video.start_seconds,
            end_seconds=video.end_seconds,
        )
        for video in dataset.videos
    ]
    streams: tuple[Stream, ...] = ("rgb", "flow") if settings.flow else ("rgb",)
    parameters: dict[str, Any] = {
        "fps": KINETICS_I3D.fps,
        "short_side": settings.short_side,
        "max_seconds": float(settings.max_seconds),
        "clips_per_shard": settings.clips_per_shard,
        "seed": settings.seed,
        **encoding_parameters(streams, rgb_quality=settings.rgb_quality),
    }
    versions = {"i3d": i3d.__version__, **_library_versions(), **encoding_versions(streams)}
    if settings.flow:
        parameters["flow_bound_pixels"] = KINETICS_I3D.flow_bound_pixels
        parameters["flow_kernel"] = flow_kernel(device)
        parameters |= {f"tvl1_{name}": value for name, value in asdict(TVL1()).items()}
    return Manifest(
        dataset=PurePosixPath(os.fspath(root).rstrip("/")).name or "videos",
        classes=dataset.classes,
        preset=settings.preset.name,
        streams=streams,
        parameters=parameters,
        versions=versions,
        shards=plan_shards(samples, clips_per_shard=settings.clips_per_shard, seed=settings.seed),
    )


def _relative(location: str, root: files.Location) -> str:
    """A video's location below the dataset's folder; of one elsewhere, its name alone."""
    folder = os.fspath(root).rstrip("/")
    if location.startswith(f"{folder}/"):
        return location.removeprefix(f"{folder}/")
    return location.rsplit("/", 1)[-1]


def _library_versions() -> dict[str, str]:
    """Libraries whose arithmetic is in the frames and the flow."""
    import av
    import cv2

    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    swscale = ".".join(map(str, av.library_versions["libswscale"]))
    return {"libavcodec": ffmpeg, "libswscale": swscale, "opencv": cv2.__version__}


# --- the job --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Precomputed:
    """What a run did, for a person (``str``) or a machine (:meth:`as_dict`).

    Attributes:
        output: folder of the shards.
        found: videos of the plan.
        missing: videos that the annotations name and that have no file.
        encoded: videos that this process encoded in this run.
        failed: (video, reason) of this process's videos that could not be encoded, in this run or
            before.
        lost: (shard, reason) of the shards that were given up.
        shards: shards of the plan.
        already: of this process's shards, those that were there before.
        made: shards that this process made in this run.
        complete: whether all shards of all processes are there.
        frames: frames encoded in this run.
        bytes: written in this run.
        seconds: of this run.
    """

    output: str
    found: int
    missing: int
    encoded: int
    failed: tuple[tuple[str, str], ...]
    lost: tuple[tuple[int, str], ...]
    shards: int
    already: int
    made: int
    complete: bool
    frames: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return {
            **asdict(self),
            "failed": [{"video": video, "reason": reason} for video, reason in self.failed],
            "lost": [{"shard": shard, "reason": reason} for shard, reason in self.lost],
        }

    def __str__(self) -> str:
        rate = self.encoded / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.output}: {self.encoded} videos ({self.frames} frames, "
            f"{self.bytes / 1e6:.1f} MB) in {self.seconds:.1f} s, {rate:.2f} videos/s; "
            f"{len(self.failed)} failed",
            f"  shards: {self.made} made, {self.already} there before, of {self.shards}"
            + ("; all complete" if self.complete else ""),
        ]
        if self.missing:
            lines.append(f"  {self.missing} annotated videos have no file")
        lines += [f"  failed: {video}: {reason}" for video, reason in self.failed[:10]]
        if len(self.failed) > 10:
            lines.append(f"  ... all of them are in {files.join(self.output, 'failures.csv')}")
        lines += [f"  shard {i} given up: {reason}; run again" for i, reason in self.lost]
        return "\n".join(lines)


def _of_this_process(device: str, world: World) -> str:
    """The GPU of this process: those of a node are shared out in turns."""
    if device != "cuda":
        return "cpu" if device == "auto" else device
    import torch

    return f"cuda:{world.local_rank % max(1, torch.cuda.device_count())}"


class _ShardLostError(Exception):
    """A worker died over a video of this shard."""


def precompute(
    videos: VideoSet,
    output: files.Location,
    *,
    settings: Settings = Settings(),
    workers: int | None = None,
    device: str = "cpu",
    world: World | None = None,
    progress: bool = False,
) -> Precomputed:
    """Turn a dataset of videos into shards; what is there already is not made again.

    Args:
        videos: which videos, and their labels.
        output: folder of the shards; path or URL.
        settings: what changes the bytes.
        workers: processes; default: this process's share of the cores.
        device: ``"cpu"`` or ``"cuda"``, of the flow.
        world: which shards are this process's; default: from the launcher's environment.
        progress: draw a progress bar.

    Raises:
        DatasetError: the dataset cannot be understood.
        UsageError: an option has no meaning, or the output was begun with other settings.
        I3DError: the output or the temporary folder is full or cannot be written.
    """
    start = time.monotonic()
    check_device(device)
    world = world_from_environment() if world is None else world
    workers = checked_workers(workers, world)
    device = _of_this_process(device, world)
    dataset = videos.read(progress=progress)
    manifest = plan(dataset, videos.location, settings, device=device)
    write_manifest(output, manifest)
    mine = world.turns(len(manifest.shards))
    there = set(complete_shards(output, manifest, shards=mine))
    todo = [shard for shard in mine if shard not in there]
    job = _Job(manifest, {v.key: v for v in dataset.videos}, output, settings, device)
    if todo:
        total = sum(len(manifest.shards[shard]) for shard in todo)
        title = world.title("precompute")
        workers = min(workers, total)
        with progress_bar(title if progress else None, total=total, unit="videos") as bar:
            job.run(todo, workers, bar)
    lost = {shard for shard, _ in job.lost}
    failed = shard_failures(output, manifest, [shard for shard in mine if shard not in lost])
    complete = not lost and finish_folder(output, manifest)
    return Precomputed(
        output=os.fspath(output),
        found=manifest.found,
        missing=len(dataset.missing),
        encoded=job.encoded,
        failed=tuple((failure.key, failure.reason) for failure in failed),
        lost=tuple(job.lost),
        shards=len(manifest.shards),
        already=len(there),
        made=len(todo) - len(job.lost),
        complete=complete,
        frames=job.frames,
        bytes=job.bytes,
        seconds=time.monotonic() - start,
    )


class _Job:
    """This process's shards, one after another, from videos that the workers encode ahead."""

    def __init__(
        self,
        manifest: Manifest,
        videos: dict[str, Video],
        output: files.Location,
        settings: Settings,
        device: str,
    ) -> None:
        self.manifest, self.videos, self.output = manifest, videos, output
        self.settings, self.device = settings, device
        self.encoded = self.frames = self.bytes = 0
        self.lost: list[tuple[int, str]] = []
        self._done = 0

    def run(self, shards: list[int], workers: int, bar: Bar) -> None:
        """Make the shards."""
        samples = (sample for i in shards for sample in self.manifest.shards[i])
        tasks = (video_task(s, self.videos[s.key].location, self.settings) for s in samples)
        start = time.monotonic()
        with (
            terminated_cleanly(),
            open_pool(self.settings, workers=workers, device=self.device) as pool,
        ):
            outcomes = pool.map(tasks, ahead=AHEAD * workers)
            for shard in shards:
                for _ in self._make(shard, (outcome for _, outcome in outcomes)):
                    rate = self.frames / (time.monotonic() - start)
                    bar.update(self._done, note=f"{rate:.0f} frames/s")

    def _make(self, shard: int, outcomes: Iterator[Outcome]) -> Iterator[None]:
        """Write one shard, yielding after every video; give it up if a worker dies over it."""
        samples = self.manifest.shards[shard]
        before = self.encoded, self.frames, self.bytes
        taken = 0
        try:
            with write_shard(self.output, self.manifest, shard) as writer:
                for sample in samples:
                    outcome = next(outcomes)
                    taken += 1
                    self._done += 1
                    self._add(writer, sample, outcome)
                    yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise I3DError(
                f"{self.output}: cannot write shard {shard} ({reason}); complete shards stay and "
                "nothing half-written is left: mend that and run again"
            ) from error
        except _ShardLostError as error:
            self.encoded, self.frames, self.bytes = before
            self.lost.append((shard, str(error)))
            click.echo(f"shard {shard} is given up: {error}; run again to make it", err=True)
            for _ in samples[taken:]:  # begun already, or cheaper done than undone
                outcome = next(outcomes)
                if isinstance(outcome, Result):
                    outcome.close()
                self._done += 1

    def _add(self, writer: ShardWriter, sample: PlannedSample, outcome: Outcome) -> None:
        location = self.videos[sample.key].location
        if isinstance(outcome, Died):
            raise _ShardLostError(f"{location}: {outcome}")
        if isinstance(outcome, Failed):
            raise judged(outcome, location)
        video: EncodedVideo = outcome.value

        def portable(text: str) -> str:
            return text.replace(location, sample.location)  # no absolute path in the shards

        try:
            if video.error is not None:
                writer.fail(sample.key, portable(video.error))
                return
            rgb, flow = outcome.files
            damage = None if video.damage is None else portable(video.damage)
            self.bytes += writer.add(
                sample.key,
                rgb=(video.rgb, rgb),
                flow=None if video.flow is None else (video.flow, flow),
                height=video.height,
                width=video.width,
                damage=damage,
            )
            self.encoded += 1
            self.frames += len(video.rgb)
        finally:
            outcome.close()


def judged(outcome: Failed, location: str) -> Exception:
    """What ends the job: an error that is not the video's."""
    error = outcome.error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return I3DError(f"{location}: no room for temporary files; set TMPDIR to a larger disk")
    if isinstance(error, I3DError):
        return error
    if isinstance(error, OSError):
        return I3DError(f"{location}: {error}")
    return RuntimeError(f"{location}: {outcome.traceback}")


def run(
    location: str,
    output: str | None,
    *,
    settings: Settings,
    workers: int | None,
    device: str,
    estimate: bool,
    strict: bool,
    as_json: bool,
    **dataset: Any,
) -> int:
    """``i3d precompute``: the exit code, 1 if shards were lost or, with strict, videos failed."""
    videos = VideoSet(location, **dataset)
    if estimate:
        from i3d.tasks.precompute.dry_run import dry_run

        estimated = dry_run(
            videos, settings=settings, workers=workers, device=device, progress=True
        )
        show(estimated, as_json=as_json)
        return 0
    if output is None:
        raise UsageError("no output folder; name one, or pass --dry-run for the plan alone")
    result = precompute(
        videos, output, settings=settings, workers=workers, device=device, progress=True
    )
    show(result, as_json=as_json)
    return 1 if result.lost or (strict and result.failed) else 0
