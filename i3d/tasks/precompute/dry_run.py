"""What precompute would do: its plan, what is missing or broken, an estimate of time and disk."""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from i3d import files
from i3d.console import progress_bar, say
from i3d.data.kinetics import Dataset, Video
from i3d.data.videos import VideoSet, open_videos
from i3d.errors import UsageError, VideoError
from i3d.parallel.pool import Failed, Result
from i3d.parallel.process import count_cores
from i3d.parallel.world import World
from i3d.tasks.precompute.encode import choose_flow_device, job_error, open_pool, video_task
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.plan import make_manifest
from i3d.video import probe_video

WARM_UP_SECONDS = 0.2
SAMPLE_VIDEOS = 3  # that are encoded to estimate time and disk


@dataclass(frozen=True)
class DryRun:
    """What `precompute` would do.

    Attributes:
        found: videos of the plan.
        classes: (name, videos) of every class that has any, the largest first; empty if unlabelled.
        missing: (video, reason) of the annotated videos that have no file.
        unreadable: (video, reason) of the videos whose header cannot be read.
        shards: shards of the plan.
        sampled: videos that were encoded to estimate the rest.
        bytes: estimate of the shards' size.
        core_seconds: estimate of the time on one core.
        workers: what the time left would be divided by.
    """

    found: int
    classes: tuple[tuple[str, int], ...]
    missing: tuple[tuple[str, str], ...]
    unreadable: tuple[tuple[str, str], ...]
    shards: int
    sampled: int
    bytes: int
    core_seconds: float
    workers: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        reasons = ("missing", "unreadable")
        return {
            **asdict(self),
            "classes": dict(self.classes),
            **{
                name: [{"video": video, "reason": reason} for video, reason in getattr(self, name)]
                for name in reasons
            },
        }

    def __str__(self) -> str:
        hours = self.core_seconds / self.workers / 3600
        lines = [
            f"{self.found} videos in {self.shards} shards; {len(self.missing)} annotated ones have "
            f"no file, {len(self.unreadable)} cannot be read"
        ]
        lines += [f"  missing: {video}: {reason}" for video, reason in self.missing[:5]]
        lines += [f"  unreadable: {video}: {reason}" for video, reason in self.unreadable[:5]]
        if self.classes:
            lines.append(f"{len(self.classes)} classes:")
            lines += [f"  {count:6} {name}" for name, count in self.classes]
        if self.sampled:
            lines.append(
                f"estimate from {self.sampled} videos: {self.bytes / 1e9:.2f} GB, "
                f"{self.core_seconds / 3600:.2f} hours on one core, "
                f"{hours:.2f} on {self.workers} workers"
            )
        return "\n".join(lines)


def dry_run(
    videos: files.Location | VideoSet,
    *,
    settings: Settings = Settings(),
    work: Work = Work(),
    progress: bool = False,
) -> DryRun:
    """Say what `precompute` would do, from every video's header and a sample encoded in full.

    Arguments and errors are those of `precompute`. Nothing is written.
    """
    device = choose_flow_device(work.device, World())
    workers = work.workers or count_cores(World())
    with open_videos(videos, labels="required", say=say if progress else None) as contents:
        root = VideoSet.of(videos).location
        if contents.dataset is None:
            raise UsageError(f"{root} holds no videos to precompute")
        dataset = contents.dataset
        manifest = make_manifest(dataset, root, settings, device=device)
    by_key = {video.key: video for video in dataset.videos}
    unreadable = _unreadable(dataset, "headers" if progress else None)
    bad = {key for key, _ in unreadable}
    # The plan's order is a shuffle, so its first videos are a sample.
    sample = [s for s in manifest.samples() if s.key not in bad][:SAMPLE_VIDEOS]
    sizes, seconds, encoded = 0, 0.0, 0
    if sample:
        with (
            progress_bar("sample" if progress else None, total=len(sample), unit="videos") as bar,
            open_pool(settings, workers=1, device=device) as pool,
        ):
            # The first task also pays for imports and compilation, so it is not counted.
            tasks = [video_task(s, by_key[s.key].location, settings) for s in sample]
            warm_up = replace(tasks[0], settings=replace(settings, max_seconds=WARM_UP_SECONDS))
            start = 0.0
            for i, (task, outcome) in enumerate(pool.map([warm_up, *tasks], ahead=1)):
                if isinstance(outcome, Failed):
                    raise job_error(outcome, task.location)
                if i == 0:
                    start = time.monotonic()
                bar.update(i)
                if isinstance(outcome, Result):
                    if i > 0:
                        encoded += outcome.value.error is None
                        sizes += sum(os.fstat(file.fileno()).st_size for file in outcome.files)
                    outcome.close()
            seconds = time.monotonic() - start
    readable = manifest.found - len(unreadable)
    scale = readable / encoded if encoded else 0.0
    names = Counter(v.class_name for v in dataset.videos if v.class_name is not None)
    return DryRun(
        found=manifest.found,
        classes=tuple(sorted(names.items(), key=lambda item: (-item[1], item[0]))),
        missing=dataset.missing,
        unreadable=tuple(unreadable),
        shards=len(manifest.shards),
        sampled=encoded,
        bytes=round(sizes * scale),
        core_seconds=seconds * scale,
        workers=workers,
    )


def _unreadable(dataset: Dataset, title: str | None) -> list[tuple[str, str]]:
    """(key, reason) of the videos whose header cannot be read."""

    def reason(video: Video) -> str | None:
        try:
            probe_video(video.location)
        except VideoError as error:
            return str(error)
        return None

    found = []
    with (
        progress_bar(title, total=len(dataset.videos), unit="videos") as bar,
        ThreadPoolExecutor(4 * count_cores(World())) as pool,
    ):
        for i, (video, why) in enumerate(
            zip(dataset.videos, pool.map(reason, dataset.videos), strict=True), 1
        ):
            bar.update(i)
            if why is not None:
                found.append((video.key, why))
    return found
