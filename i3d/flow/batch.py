"""Flow of many videos at once on a GPU: which frames go into one batch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from i3d.flow import gpu
from i3d.flow.tvl1 import TVL1

STREAM_FRAMES = 257  # read ahead when flow is streamed: ten seconds; fewer of large frames
SIZES_KEPT = 4  # solvers, whose memory is kept for the next video of that size


def open_solver(
    height: int, width: int, parameters: TVL1, device: str, most_frames: int | None = None
) -> gpu.BatchSolver:
    """What computes flow between frames of one size on a GPU."""
    where = torch.device(device)
    return gpu.BatchSolver(height, width, parameters, where, most_frames=most_frames)


_kept_solver = functools.lru_cache(maxsize=SIZES_KEPT)(open_solver)


def stream_batches(
    frames: Iterable[np.ndarray], *, device: str, parameters: TVL1
) -> Iterator[np.ndarray]:
    """Flows float32 (H, W, 2) between neighbours of any number of gray frames uint8 (H, W)."""
    solver: gpu.BatchSolver | None = None
    for group in _read_ahead(frames):
        if solver is None:  # opened only now, so that it takes the memory of the frames there are
            height, width = group[0].shape
            solver = open_solver(height, width, parameters, device, len(group))
        for start in range(0, len(group) - 1, solver.most_frames - 1):
            yield from _flow(solver, group[start : start + solver.most_frames])


def _read_ahead(frames: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Groups of two frames or more; the last of one is the first of the next."""
    group: list[np.ndarray] = []
    for frame in frames:
        group.append(frame)
        if len(group) == min(STREAM_FRAMES, gpu.batch_frames(*frame.shape)):
            yield group
            group = group[-1:]
    if len(group) > 1:
        yield group


def _flow(solver: gpu.BatchSolver, frames: list[np.ndarray]) -> np.ndarray:
    pairs = [(i, i + 1) for i in range(len(frames) - 1)]
    return solver.flow(np.stack(frames), pairs).cpu().numpy()


@dataclass(frozen=True)
class Segment:
    """Neighbouring frames of one video: ``start`` to ``stop``, at least two."""

    video: int
    start: int
    stop: int


def cut_into_batches(lengths: Sequence[int], most_frames: int) -> list[list[Segment]]:
    """Segments of videos of these lengths, in batches of at most ``most_frames`` (2 or more).

    Two segments of one video share a frame, so every pair of neighbours is in exactly one.
    """
    batches: list[list[Segment]] = []
    room = 0
    for video, length in enumerate(lengths):
        start = 0
        while length - start > 1:
            if room < 2:
                batches.append([])
                room = most_frames
            stop = min(length, start + room)
            batches[-1].append(Segment(video, start, stop))
            room -= stop - start
            start = stop - 1
    return batches


def flow_batches(
    videos: Sequence[np.ndarray],
    *,
    device: str,
    parameters: TVL1 = TVL1(),  # noqa: B008 (frozen)
) -> Iterator[tuple[int, torch.Tensor]]:
    """(number of a video, some of its flows), each video's in order; together they are all.

    Args:
        videos: gray frames, uint8 (T, H, W), T at least 1; sizes may differ.
        device: the GPU, e.g. ``"cuda:1"``.
        parameters: the algorithm's.

    Yields:
        Flow float32 (n, H, W, 2) on the device, valid until the next is asked for.
    """
    sizes = dict.fromkeys(video.shape[1:] for video in videos)
    for height, width in sizes:
        numbers = [i for i, video in enumerate(videos) if video.shape[1:] == (height, width)]
        solver = _kept_solver(height, width, parameters, device)
        lengths = [len(videos[i]) for i in numbers]
        for batch in cut_into_batches(lengths, solver.most_frames):
            frames = np.concatenate([videos[numbers[s.video]][s.start : s.stop] for s in batch])
            pairs, first = [], 0
            for segment in batch:
                last = first + segment.stop - segment.start - 1
                pairs += [(i, i + 1) for i in range(first, last)]
                first = last + 1
            flow = solver.flow(frames, pairs)
            first = 0
            for segment in batch:
                count = segment.stop - segment.start - 1
                yield numbers[segment.video], flow[first : first + count]
                first += count
