"""Features of videos of any length: sliding windows through an RGB network, a flow network or both.

    videos or shards --rank r: every world-th video--> workers decode, flow once a pair, crop
      --chunks of uint8--> windows on the device --> network --> rows --> a file a video

A window's flow begins at its first frame and is as long, so it reaches to the frame after the
window; a window that ends with the video lacks that one, and its flow is looped from its start, as
the test clip's is. Both streams of a row so see the same stretch at the same length.

Every video is streamed: what is in memory does not depend on its length. Windows of different
videos never share a batch, so a video's bytes do not depend on the others, nor on which process
had it. No process waits for another, but that process 0 reports when all are done.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from i3d import files
from i3d.clips import Views
from i3d.console import Bar, choose_teller, progress_bar, show
from i3d.data.reading.chunks import CHUNK_FRAMES, Chunk, ChunkSource, load_chunks, open_chunks
from i3d.data.reading.clips import clip_bytes
from i3d.data.videos import Contents, VideoSet, open_videos
from i3d.errors import CheckpointError, DatasetError, I3DError, UsageError, VideoError
from i3d.models.i3d import ENDPOINTS
from i3d.parallel.ahead import check_shared_memory
from i3d.parallel.process import choose_workers, count_cores, terminated_cleanly
from i3d.parallel.world import PATIENCE_SECONDS, World, await_others, world_from_environment
from i3d.presets import Stream, find_preset
from i3d.tasks.features.files import (
    FeatureFolder,
    FeatureSettings,
    Outcomes,
    VideoAbout,
)
from i3d.tasks.features.merged import merge, output_format, read_merged
from i3d.tasks.features.options import FeatureCheckpoints, FeatureOptions
from i3d.tasks.features.windows import VideoWindows
from i3d.tasks.network import Network, choose_device, common_preset, load_networks
from i3d.tasks.options import StrictOptions, check_choice
from i3d.version import VERSION

SHOWN_SKIPS = 10


@dataclass(frozen=True)
class Extracted:
    """What a run did, for a person (``str``) or a machine (:meth:`as_dict`).

    Of all processes together on process 0; on another one, of its own videos.

    Attributes:
        output: file or folder.
        found: videos: done + skipped, once it is complete.
        done: videos with features.
        already: the done ones that were there before.
        skipped: (video, reason) of those without.
        rows: written in this run.
        frames: read in this run, of the videos that have features.
        seconds: duration of this run.
        complete: whether every video has an outcome, and one file is written.
        processes: number of them.
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
            others = "all are done" if self.complete else "others are at work, or died: run again"
            lines.append(f"  {self.processes} processes; {others}")
        lines += [f"  skipped {video}: {reason}" for video, reason in self.skipped[:SHOWN_SKIPS]]
        if len(self.skipped) > SHOWN_SKIPS:
            more = len(self.skipped) - SHOWN_SKIPS
            lines.append(f"  ... and {more} more, all of them in the output")
        return "\n".join(lines)


def extract(
    videos: files.Location | VideoSet,
    output: files.Location,
    checkpoints: Sequence[files.Location],
    *,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: bool = False,
) -> Extracted:
    """Compute features; what is there already is not computed again.

    Args:
        videos: folder, list or file of videos, or folder of shards; path or URL.
        output: folder, or ``.parquet``, ``.h5`` or ``.hdf5`` file; path or URL.
        checkpoints: names, paths or URLs (:func:`i3d.load`) of an RGB network, a flow network or
            both.
        options: what and how.
        world: this process's part of the videos; default: from the launcher's environment.
        patience_seconds: how long process 0 waits for another video of the other processes, before
            it reports what is there; longer where its own videos took longer.
        progress: draw a progress bar on process 0.

    Raises:
        DatasetError: the dataset cannot be understood, or no video of it has features.
        CheckpointError: a checkpoint cannot be loaded, or they do not fit together.
        UsageError: an option has no meaning, or the output was begun with other settings.
        I3DError: the storage fails, a worker dies, or what was written is gone.
    """
    start = time.monotonic()
    world = world_from_environment() if world is None else world
    tell = choose_teller(progress, first=world.first)
    progress = progress and world.first
    check_choice("endpoint", options.endpoint, ("clip", "steps", *ENDPOINTS))
    if 0 < len(checkpoints) < len(options.streams):
        raise UsageError(
            f"--for {options.recipe} is RGB beside flow; name a --checkpoint of each, or say "
            f"--window {options.window} --step {options.step} --format {options.format} yourself"
        )
    form, container = output_format(output, options.format)
    device = choose_device(options.device, world)
    with ExitStack() as stack:
        contents = stack.enter_context(open_videos(videos, labels="optional", say=tell))
        _warn_of_missing(contents, tell)
        networks = load_networks(
            checkpoints, device=device, precision=options.precision, progress=progress
        )
        settings = _describe(contents, networks, options, container)
        source = open_chunks(contents, find_preset(settings.preset))
    location = os.fspath(output)
    one_file = form != container
    folder = FeatureFolder(_parts(location) if one_file else location, settings, source.keys)
    if one_file and files.exists(output):
        found, skipped = read_merged(location, settings)
        if found != len(source.keys):
            raise UsageError(
                f"{location} is of {found} videos, and now there are {len(source.keys)}; name "
                "another file"
            )
        if world.first:
            _remove_parts(location)
        done = found - len(skipped)
        seconds = time.monotonic() - start
        return Extracted(location, found, done, done, skipped, 0, 0, seconds, True, world.size)
    folder.begin()
    before = folder.done()
    mine = world.turns(len(source.keys))
    todo = [i for i in mine if i not in before]
    job = _Extraction(networks, settings, options, source, folder)
    if todo:
        workers, threads = _share_cores(options, device, world, contents, networks, len(todo))
        title = world.title("features") if progress else None
        with terminated_cleanly(), progress_bar(title, total=len(todo), unit="videos") as bar:
            job.run(todo, workers, threads, bar)
    rows, frames, failed = job.rows, job.frames, job.failed
    found, done, already = len(mine), len(mine) - len(failed), len(mine) - len(todo)
    if world.first and world.size > 1:
        patience = max(patience_seconds, 3 * job.slowest_seconds)
        _await_others(folder, output if one_file else None, patience, progress=progress)
        there = folder.done()
        rows, frames = folder.measure(there - before)
        failed = folder.failures()
        found, done, already = len(source.keys), len(there), len(before)
    complete = _finish(folder, output, form, world) if one_file else _finish_folder(folder)
    if not complete and world.size == 1:  # of several, others may be at work
        raise I3DError(f"{location}: files that were written are gone; run again to make them")
    return Extracted(
        output=location,
        found=found,
        done=done,
        already=already,
        skipped=tuple((source.keys[i], failed[i]) for i in sorted(failed)),
        rows=rows,
        frames=frames,
        seconds=time.monotonic() - start,
        complete=complete,
        processes=world.size,
    )


def _await_others(
    folder: FeatureFolder,
    one_file: files.Location | None,
    patience_seconds: float,
    *,
    progress: bool,
) -> None:
    """Wait until every video has an outcome: what process 0 does, which reports for all.

    One file for all, once it is there, holds them: another run has made it.
    """

    def count_done() -> int:
        merged = one_file is not None and files.exists(one_file)
        return len(folder.keys) if merged else len(folder.outcomes())

    title = "features of all processes" if progress else None
    with progress_bar(title, total=len(folder.keys), unit="videos") as bar:
        await_others(
            count_done,
            len(folder.keys),
            patience_seconds=patience_seconds,
            bar=bar,
        )


def _finish_folder(folder: FeatureFolder) -> bool:
    """Do what is left when every video has an outcome; whether that is so."""
    outcomes = folder.find_outcomes()
    if outcomes is None:
        return False
    folder.finish(outcomes)
    _refuse_nothing(folder, outcomes)
    return True


def _finish(folder: FeatureFolder, output: files.Location, form: str, world: World) -> bool:
    """Make one file of the folder when every video has an outcome; whether that is so.

    Process 0 does it, which waits for the others. Of two runs at once the first to end removes the
    folder; then the other one finds the file, and removes what it has written to the folder since.
    """
    outcomes = folder.find_outcomes()
    if not world.first:
        return outcomes is not None or files.exists(output)
    if outcomes is not None:
        _refuse_nothing(folder, outcomes)
        try:
            merge(folder, outcomes, output, form)
        except OSError as error:
            if not (files.is_gone(error) and files.exists(output)):
                raise
    elif not files.exists(output):
        return False
    _remove_parts(os.fspath(output))
    return True


def _refuse_nothing(folder: FeatureFolder, outcomes: Outcomes) -> None:
    """Fail where no video has features."""
    if not outcomes.done:
        i, reason = min(outcomes.failures.items())
        raise DatasetError(
            f"none of {len(folder.keys)} videos has features; the first, {folder.keys[i]}: {reason}"
        )


def _parts(output: str) -> str:
    """The folder that one file for all is made from."""
    return f"{output}.parts"


def _remove_parts(output: str) -> None:
    """Remove that folder and other leavings, once the file is there."""
    files.remove_folder(_parts(output))
    files.remove_leftovers([output])


# --- what is read, and by what --------------------------------------------------------------------


def _warn_of_missing(contents: Contents, tell: Callable[[str], None] | None) -> None:
    missing = 0 if contents.dataset is None else len(contents.dataset.missing)
    if not missing:
        return
    text = f"{missing} annotated videos have no file"
    if tell is None:
        warnings.warn(text, stacklevel=3)
    else:
        tell(f"warning: {text}")


def _describe(
    contents: Contents, networks: Mapping[Stream, Network], options: FeatureOptions, container: str
) -> FeatureSettings:
    """What is to be computed; refuses networks that do not fit the dataset or each other."""
    contents.require(list(networks))
    models = [network.model for network in networks.values()]
    first = models[0]
    preset = common_preset(networks, contents.preset)
    scores = options.endpoint in ("Logits", "Predictions")
    if scores and any(model.classes != first.classes for model in models):
        raise CheckpointError("the checkpoints tell other classes apart; run each by itself")
    return FeatureSettings(
        dataset=contents.name,
        container=container,
        preset=preset.name,
        fps=preset.fps,
        endpoint=options.endpoint,
        classes=first.classes if scores else (),
        window_frames=options.window_frames(preset.fps),
        step_frames=float(options.step_frames(preset.fps)),
        rest=options.rest,
        short=options.short,
        precision=options.precision,
        # no absolute path in a file
        checkpoints={
            str(stream): replace(n.used, name=n.used.name.rstrip("/").rpartition("/")[2])
            for stream, n in networks.items()
        },
        versions={**_versions(contents, networks), **contents.versions},
    )


def _versions(contents: Contents, networks: Mapping[Stream, Network]) -> dict[str, str]:
    """The software whose arithmetic is in the features."""
    libraries = ["torch", "numpy", "av" if contents.shards is None else "simplejpeg"]
    versions = {"i3d": VERSION, **{name: version(name) for name in libraries}}
    if contents.shards is None:
        import av
        import cv2

        versions["libavcodec"] = ".".join(map(str, av.library_versions["libavcodec"]))
        versions["opencv"] = cv2.__version__
        if "flow" in networks:
            versions["numba"] = version("numba")
    return versions


def _share_cores(
    options: FeatureOptions,
    device: str,
    world: World,
    contents: Contents,
    networks: Mapping[Stream, Network],
    videos: int,
) -> tuple[int, int]:
    """(processes that read, threads of each one's flow)."""
    computes_flow = contents.shards is None and "flow" in networks
    workers = choose_workers(options.workers, device, world, decodes=computes_flow)
    workers = min(workers, videos)
    preset = find_preset(next(iter(networks.values())).model.preset)
    size = clip_bytes(Views(frames=CHUNK_FRAMES), preset)
    check_shared_memory(size, workers=workers, processes=world.local_size)
    return workers, max(1, count_cores(world) // max(1, workers))


# --- the work of one process ----------------------------------------------------------------------


class _Extraction:
    """This process's videos."""

    def __init__(
        self,
        networks: Mapping[Stream, Network],
        settings: FeatureSettings,
        options: FeatureOptions,
        source: ChunkSource,
        folder: FeatureFolder,
    ) -> None:
        self.networks, self.settings, self.options = networks, settings, options
        self.source, self.folder = source, folder
        self.rows = self.frames = 0
        self.failed: dict[int, str] = {}
        self.slowest_seconds = 0.0  # between two videos
        self._open: dict[int, VideoWindows] = {}

    def run(self, todo: Sequence[int], workers: int, threads: int, bar: Bar) -> None:
        """Compute them; a video is written when it ends."""
        chunks = load_chunks(
            self.source,
            todo,
            streams=list(self.networks),
            workers=workers,
            threads=threads,
            pin=any(network.device != "cpu" for network in self.networks.values()),
        )
        start, done = time.monotonic(), 0
        finished = start  # the last video
        try:
            for chunk in chunks:
                if self._take(chunk):
                    done, now = done + 1, time.monotonic()
                    self.slowest_seconds = max(self.slowest_seconds, now - finished)
                    finished = now
                rate = self.frames / (time.monotonic() - start)
                bar.update(done, note=f"{rate:.0f} frames/s")
        finally:
            for video in self._open.values():
                video.close()

    def _take(self, chunk: Chunk) -> bool:
        """Work on a chunk; whether its video has an outcome now."""
        i = chunk.video
        if i not in self._open:
            self._open[i] = VideoWindows(self.networks, self.settings, self.options)
        video = self._open[i]
        self.frames += chunk.frames
        reason = chunk.error
        if reason is None:
            video.add(chunk.frames, chunk.pixels)
            if not chunk.last:
                return False
            reason = video.refusal()
        if reason is None:
            try:
                self._write(i, video, chunk.damage)
            except VideoError as error:
                reason = str(error)
        if reason is not None:
            self.folder.fail(i, reason)
            self.failed[i] = reason
        self._open.pop(i).close()
        return True

    def _write(self, i: int, video: VideoWindows, damage: str | None) -> None:
        """Compute the last windows and write the file.

        Raises:
            VideoError: rows hold NaN or infinity.
        """
        spans, rows = video.finish()
        about = VideoAbout(
            video=self.source.keys[i],
            source=self.source.sources[i],
            frames=video.frames,
            seconds=video.frames / self.settings.fps,
            looped=video.looped,
            damage=damage,
        )
        self.folder.write(i, about, spans, rows)
        self.rows += len(spans)


def run_features(
    videos: VideoSet,
    output: str,
    networks: FeatureCheckpoints,
    options: FeatureOptions,
    outputs: StrictOptions,
) -> int:
    """``i3d features``: the exit code, 1 if with strict videos were skipped."""
    world = world_from_environment()
    result = extract(
        videos, output, networks.checkpoints, options=options, world=world, progress=True
    )
    if world.first:
        show(result, as_json=outputs.as_json)
    return outputs.exit_code(result.skipped)
