"""The work on one video, in worker processes: decode, resize, compute flow, encode.

With a GPU the flow has a process of its own, and each video passes through it:

      workers: decode, resize, gray, JPEG --> GPU: flow of several videos --> workers: PNG
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

from i3d.data.shards import Pictures, PictureWriter, PlannedSample
from i3d.data.shards.pictures import encode_flow, encode_rgb
from i3d.errors import I3DError, VideoError
from i3d.flow import check_device, stream_flow
from i3d.parallel.ahead import out_of_memory
from i3d.parallel.pool import Failed, Result, Stage, WorkerPool, temporary_file
from i3d.parallel.world import World
from i3d.tasks.precompute.options import Settings

# One thread in each library inside a worker, so that N workers load N cores.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
VIDEOS_TOGETHER = 4  # on the GPU at the same time, at most: a thousand pairs keep it busy


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
        height: pixels of the resized frames.
        width: pixels of the resized frames.
        rgb: sizes and checksums of the frames.
        flow: the flows'; None without.
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
    import torch

    from i3d.clips import quantize_flow
    from i3d.flow.batch import flow_batches

    if device != "cpu":  # which it is in tests
        torch.cuda.set_device(device)  # first: what else comes to CUDA would take GPU 0
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


def job_error(outcome: Failed, location: str) -> Exception:
    """What ends the job: an error that is not the video's fault."""
    error = outcome.error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return I3DError(f"{location}: no room for temporary files; set TMPDIR to a larger disk")
    if isinstance(error, I3DError):
        return error
    if isinstance(error, MemoryError):
        return out_of_memory(location, error)
    if isinstance(error, OSError):
        return I3DError(f"{location}: {error}")
    return RuntimeError(f"{location}: {outcome.traceback}")


def choose_flow_device(device: str, world: World) -> str:
    """Where this process computes flow: the GPUs of a node are shared out in turns.

    Raises:
        UsageError: a device that cannot compute flow here.
    """
    check_device(device)
    if device == "auto":
        return "cpu"
    if device != "cuda":
        return device
    import torch

    return f"cuda:{world.local_rank % max(1, torch.cuda.device_count())}"
