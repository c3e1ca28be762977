"""A directory of videos -> shards of RGB frames and TV-L1 flow, in parallel and resumable.

    videos --read_dataset--> plan (manifest.json) --rank r: shards r, r + world, ...-->
      workers: decode, resize, flow, encode --in the plan's order--> shard-00000.tar + .json

The plan depends on the data and the settings alone, and every step is deterministic, so any number
of workers, processes and nodes gives the same bytes. A shard and its sidecar appear under their
names when they are whole; what is there is not made again. No process waits for another, but that
process 0 reports when all are done.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from i3d import files
from i3d.console import Bar, choose_teller, progress_bar, say, show
from i3d.data.shards import (
    Manifest,
    PlannedSample,
    ShardDataset,
    ShardWriter,
    complete_shards,
    finish_folder,
    shard_failures,
    write_manifest,
    write_shard,
)
from i3d.data.videos import VideoSet, open_videos
from i3d.errors import I3DError, UsageError, shown
from i3d.parallel.pool import Died, Failed, Outcome, Result, WorkerPool
from i3d.parallel.process import count_cores, terminated_cleanly
from i3d.parallel.world import PATIENCE_SECONDS, World, await_others, world_from_environment
from i3d.tasks.precompute.encode import (
    EncodedVideo,
    choose_flow_device,
    job_error,
    open_pool,
    video_task,
)
from i3d.tasks.precompute.options import PrecomputeOutputs, Settings, Work
from i3d.tasks.precompute.plan import make_manifest

AHEAD = 3  # videos begun per worker beyond the one that is written next
_THREADS = 16  # for small reads


@dataclass(frozen=True)
class Precomputed:
    """What a run did, for a person (``str``) or a machine (:meth:`as_dict`).

    Of all processes together on process 0; on another one, of its own shards.

    Attributes:
        output: folder of the shards.
        found: videos of the plan.
        missing: videos that the annotations name and that have no file.
        encoded: videos encoded in this run.
        failed: (video, reason) of those that could not be encoded, in this run or before.
        lost: (shard, reason) of the shards that this process gave up.
        shards: shards of the plan.
        already: shards that were there before.
        made: shards made in this run.
        complete: whether all shards of all processes are there.
        frames: frames encoded in this run.
        bytes: size of the videos written in this run.
        seconds: duration of this run.
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
            + ("; all complete" if self.complete else "; not all are there: run again"),
        ]
        if self.missing:
            lines.append(f"  {self.missing} annotated videos have no file")
        lines += [f"  failed: {video}: {reason}" for video, reason in self.failed[:10]]
        if len(self.failed) > 10:
            lines.append(f"  ... all of them are in {files.join(self.output, 'failures.csv')}")
        lines += [f"  shard {i} given up: {reason}; run again" for i, reason in self.lost]
        return "\n".join(lines)


class _ShardLostError(Exception):
    """A worker died over a video of this shard."""


def precompute(
    videos: files.Location | VideoSet,
    output: files.Location,
    *,
    settings: Settings = Settings(),
    work: Work = Work(),
    world: World | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: bool = False,
) -> Precomputed:
    """Turn a dataset of videos into shards; what is there already is not made again.

    Args:
        videos: the dataset, and its labels.
        output: folder of the shards; path or URL.
        settings: what changes the bytes.
        work: processes, and the flow's device.
        world: this process's part of the shards; default: from the launcher's environment.
        patience_seconds: how long process 0 waits for another shard of the other processes, before
            it reports what is there; longer where its own shards took longer.
        progress: draw a progress bar on process 0.

    Raises:
        DatasetError: the dataset cannot be understood.
        UsageError: an option has no meaning, or the output was begun with other settings.
        StorageError: a URL's server or the disk with the videos fails; no video is failed for it.
        I3DError: the output or the temporary folder is full or cannot be written, or what was
            written is gone.
    """
    start = time.monotonic()
    world = world_from_environment() if world is None else world
    tell = choose_teller(progress, first=world.first)
    progress = progress and world.first
    device = choose_flow_device(work.device, world)
    workers = work.workers or count_cores(world)
    with open_videos(videos, labels="required", say=tell) as contents:
        chosen = contents.videos
        assert contents.dataset is not None
        missing = len(contents.dataset.missing)
        root = VideoSet.of(videos).location
        manifest = make_manifest(contents.dataset, root, settings, device=device)
    locations = {video.key: video.location for video in chosen}
    encoder = Encoder(
        title="precompute",
        make_task=lambda sample: video_task(sample, locations[sample.key], settings),
        locate=lambda sample: locations[sample.key],
        open_pool=lambda workers: open_pool(settings, workers=workers, device=device),
    )
    made = make_shards(
        output,
        manifest,
        encoder,
        workers=workers,
        world=world,
        patience_seconds=patience_seconds,
        progress=progress,
    )
    return replace(made, missing=missing, seconds=time.monotonic() - start)


@dataclass(frozen=True)
class Encoder:
    """What turns samples of a plan into pictures, in worker processes.

    Attributes:
        title: of the progress bar.
        make_task: sample -> what the workers are told.
        locate: sample -> its source, for messages.
        open_pool: number of workers -> the pool, whose results are `EncodedVideo`.
    """

    title: str
    make_task: Callable[[PlannedSample], Any]
    locate: Callable[[PlannedSample], str]
    open_pool: Callable[[int], WorkerPool[Any]]


def make_shards(
    output: files.Location,
    manifest: Manifest,
    encoder: Encoder,
    *,
    workers: int,
    world: World,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: bool = False,
) -> Precomputed:
    """Make this process's shards of a plan; those that are there are not made again.

    Args:
        output: folder of the shards; path or URL.
        manifest: the plan.
        encoder: what makes its samples.
        workers: processes.
        world: this process's part of the shards.
        patience_seconds: see `precompute`.
        progress: draw a progress bar.

    Raises:
        UsageError: the output was begun with other settings.
        I3DError: the output or the temporary folder is full or cannot be written, or what was
            written is gone.
    """
    start = time.monotonic()
    write_manifest(output, manifest)
    mine = world.turns(len(manifest.shards))
    before = set(complete_shards(output, manifest, shards=None if world.first else mine))
    todo = [shard for shard in mine if shard not in before]
    job = _ShardMaker(manifest, output, encoder)
    if todo:
        total = sum(len(manifest.shards[shard]) for shard in todo)
        title = world.title(encoder.title) if progress else None
        with progress_bar(title, total=total, unit="videos") as bar:
            job.run(todo, min(workers, total), bar)
    lost = {shard for shard, _ in job.lost}
    there = (before & set(mine) | set(todo)) - lost
    encoded, frames, size = job.encoded, job.frames, job.bytes
    if world.first and world.size > 1:
        patience = max(patience_seconds, 3 * job.slowest_seconds)
        title = f"{encoder.title} of all processes" if progress else None
        there = _await_others(output, manifest, lost, patience, title)
        encoded, frames, size = _measure(output, manifest, sorted(there - before))
    complete = not lost and finish_folder(output, manifest)
    if not complete and not lost and world.size == 1:  # of several, others may be at work
        raise I3DError(f"{output}: shards that were written are gone; run again to make them")
    failed = shard_failures(output, manifest, sorted(there))
    return Precomputed(
        output=os.fspath(output),
        found=manifest.found,
        missing=0,
        encoded=encoded,
        failed=tuple((failure.key, failure.reason) for failure in failed),
        lost=tuple(job.lost),
        shards=len(manifest.shards),
        already=len(there & before),
        made=len(there - before),
        complete=complete,
        frames=frames,
        bytes=size,
        seconds=time.monotonic() - start,
    )


def _await_others(
    output: files.Location,
    manifest: Manifest,
    lost: set[int],
    patience_seconds: float,
    title: str | None,
) -> set[int]:
    """The shards that are there when all processes are done, of all of them."""
    wanted = [shard for shard in range(len(manifest.shards)) if shard not in lost]
    found: set[int] = set()

    def count_done() -> int:
        missing = [shard for shard in wanted if shard not in found]
        found.update(complete_shards(output, manifest, shards=missing))
        return len(found)

    with progress_bar(title, total=len(wanted), unit="shards") as bar:
        await_others(count_done, len(wanted), patience_seconds=patience_seconds, bar=bar)
    return found


def _measure(output: files.Location, manifest: Manifest, shards: list[int]) -> tuple[int, int, int]:
    """Videos, frames and bytes of some shards, as their sidecars and samples say."""
    dataset = ShardDataset(output, manifest, shards)
    records = [record for shard in shards for record in dataset.index(shard).samples]
    with ThreadPoolExecutor(_THREADS) as pool:
        infos = pool.map(lambda r: dataset.find_sample(r.key).info, records)
        frames = sum(len(info.rgb) for info in infos)
    return len(records), frames, sum(record.size for record in records)


class _ShardMaker:
    """This process's shards, one after another, from videos that the workers encode ahead."""

    def __init__(self, manifest: Manifest, output: files.Location, encoder: Encoder) -> None:
        self.manifest, self.output, self.encoder = manifest, output, encoder
        self.encoded = self.frames = self.bytes = 0
        self.slowest_seconds = 0.0  # of a shard
        self.lost: list[tuple[int, str]] = []
        self._done = 0

    def run(self, shards: list[int], workers: int, bar: Bar) -> None:
        """Make the shards."""
        samples = (sample for i in shards for sample in self.manifest.shards[i])
        start = time.monotonic()
        with terminated_cleanly(), self.encoder.open_pool(workers) as pool:
            outcomes = pool.map(map(self.encoder.make_task, samples), ahead=AHEAD * workers)
            for shard in shards:
                began = time.monotonic()
                for _ in self._make(shard, (outcome for _, outcome in outcomes)):
                    rate = self.frames / (time.monotonic() - start)
                    bar.update(self._done, note=f"{rate:.0f} frames/s")
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)

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
            say(f"shard {shard} is given up: {error}; run again to make it")
        # Of a shard that was given up, or that another run has made. These are begun already, or
        # cheaper done than undone.
        for _ in samples[taken:]:
            outcome = next(outcomes)
            if isinstance(outcome, Result):
                outcome.close()
            self._done += 1

    def _add(self, writer: ShardWriter, sample: PlannedSample, outcome: Outcome) -> None:
        location = self.encoder.locate(sample)
        if isinstance(outcome, Died):
            raise _ShardLostError(f"{location}: {outcome}")
        if isinstance(outcome, Failed):
            raise job_error(outcome, location)
        video: EncodedVideo = outcome.value

        def portable(text: str) -> str:
            # no absolute path in the shards; messages have the URL without its password
            return shown(text).replace(shown(location), shown(sample.location))

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


def run_precompute(
    videos: VideoSet, settings: Settings, work: Work, outputs: PrecomputeOutputs, output: str | None
) -> int:
    """``i3d precompute``: the exit code, 1 if shards were lost or, with strict, videos failed."""
    if outputs.dry_run:
        from i3d.tasks.precompute.dry_run import dry_run

        estimated = dry_run(videos, settings=settings, work=work, progress=True)
        show(estimated, as_json=outputs.as_json)
        return 0
    if output is None:
        raise UsageError("no output folder; name one, or pass --dry-run for the plan alone")
    world = world_from_environment()
    result = precompute(videos, output, settings=settings, work=work, world=world, progress=True)
    if world.first:
        show(result, as_json=outputs.as_json)
    return 1 if result.lost or (outputs.strict and result.failed) else 0
