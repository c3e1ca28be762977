"""Frames -> TV-L1 optical flow: float32 (T-1, H, W, 2), x then y, in pixels.

    optical_flow   all flows of a video in one array
    stream_flow    the same, frame by frame in bounded memory
    TVL1           the algorithm's parameters

The flow is that of OpenCV's DualTVL1 (`tvl1.py` describes the algorithm), computed by the kernels
in `cpu.py` or, on a GPU, many pairs at a time by those in `tvl1.cu`. The same frames give the same
bits in both functions, with any number of threads and in any batch; a GPU rounds as the CPU does,
so most pairs have the CPU's bits there (docs/gpu.md).
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from i3d.errors import UsageError
from i3d.flow.tvl1 import TVL1

if TYPE_CHECKING:
    from i3d.flow.cpu import PairSolver, Scale

__all__ = ["optical_flow", "stream_flow", "TVL1"]

MIN_SIDE = 16  # pixels: the shortest side that a scale of the pyramid may have
DEFAULTS = TVL1()
ON_CPU = ("cpu", "auto")


def optical_flow(
    frames: Any, *, device: str = "cpu", threads: int = 1, parameters: TVL1 = DEFAULTS
) -> np.ndarray:
    """TV-L1 flow between neighbouring frames.

    frames      uint8 (T, H, W, 3) RGB or (T, H, W) gray, T >= 2, H and W >= 16; NumPy or PyTorch
    device      "cpu", "cuda" or "cuda:1"; "auto" is the CPU, so that the same call gives the same
                bits on every machine
    threads     of the CPU: pairs of frames at work at once; the result does not depend on it
    returns     float32 (T-1, H, W, 2): flow[t, y, x] = (u1, u2), pixels; frame t at (x, y) looks
                like frame t + 1 at (x + u1, y + u2)
    """
    frames = _as_numpy(frames)
    if frames.ndim not in (3, 4):
        raise UsageError(
            f"frames have shape {frames.shape}; flow needs (T, H, W, 3) RGB or (T, H, W) gray"
        )
    if len(frames) < 2:
        raise UsageError(
            f"{len(frames)} frame(s) have no flow; optical_flow needs at least 2 (T >= 2)"
        )
    flows = stream_flow(frames, device=device, threads=threads, parameters=parameters)
    first = next(flows)
    result = np.empty((len(frames) - 1, *first.shape), np.float32)
    result[0] = first
    for index, flow in enumerate(flows, start=1):
        result[index] = flow
    return result


def stream_flow(
    frames: Iterable[Any], *, device: str = "cpu", threads: int = 1, parameters: TVL1 = DEFAULTS
) -> Iterator[np.ndarray]:
    """The flows of `optical_flow` one after another, each float32 (H, W, 2).

    frames      any iterable of uint8 (H, W, 3) RGB or (H, W) gray, all of one size. No more than
                2 * threads + 1 of them are read ahead, 257 on a GPU or fewer if they are large.
                Fewer than two give no flow.
    """
    check_device(device)
    if threads < 1:
        raise UsageError(f"threads={threads}: must be at least 1, e.g. {os.cpu_count()}")
    if device in ON_CPU:
        return _stream(_gray_frames(frames), threads, parameters)
    from i3d.flow.batch import stream_batches

    return stream_batches(_gray_frames(frames), device=device, parameters=parameters)


def check_device(device: str) -> None:
    """Raise a UsageError for a device that cannot compute flow here."""
    if device in ON_CPU:
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise UsageError(f"device={device!r}: unknown device; use 'cpu' or 'cuda'")
    import torch  # a second to import, so only when a GPU is asked for

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count <= int(device.partition(":")[2] or 0):
        raise UsageError(
            f"device={device!r}: PyTorch {torch.__version__} sees {count} GPUs here; "
            "use device='cpu'"
        )
    if torch.version.hip is not None:
        raise UsageError(
            f"device={device!r}: PyTorch {torch.__version__} is built for AMD's GPUs, and flow "
            "needs an NVIDIA GPU; use device='cpu'"
        )
    from i3d.flow.gpu import load_compiler

    load_compiler()


def flow_kernel(device: str) -> str:
    """Which kernels compute flow on a device: "cpu" or "cuda"."""
    return "cpu" if device in ON_CPU else "cuda"


def _stream(frames: Iterator[np.ndarray], threads: int, parameters: TVL1) -> Iterator[np.ndarray]:
    from i3d.flow import cpu  # numba: 0.3 s to import, so only when flow is computed

    # A frame's scales serve both of its pairs; a solver serves one pair at a time.
    previous: list[Scale] | None = None
    spare: list[list[Scale]] = []
    idle: SimpleQueue[PairSolver] = SimpleQueue()
    running: deque[tuple[Future[np.ndarray], list[Scale]]] = deque()
    pairs_ahead = 1 if threads == 1 else 2 * threads

    def solve(first: list[Scale], second: list[Scale]) -> np.ndarray:
        solver = idle.get()
        try:
            return solver.flow(first, second)
        finally:
            idle.put(solver)

    def finish_oldest() -> np.ndarray:
        future, first = running.popleft()
        flow = future.result()
        spare.append(first)  # the pair in which it came second was finished before
        return flow

    with ThreadPoolExecutor(threads, thread_name_prefix="flow") as pool:
        for gray in frames:
            if previous is None:
                for _ in range(threads):
                    idle.put(cpu.PairSolver(gray.shape[0], gray.shape[1], parameters))
            scales = cpu.build_scales(gray, parameters, spare.pop() if spare else None)
            if previous is not None:
                running.append((pool.submit(solve, previous, scales), previous))
            previous = scales
            while len(running) >= pairs_ahead:
                yield finish_oldest()
        while running:
            yield finish_oldest()


def _gray_frames(frames: Iterable[Any]) -> Iterator[np.ndarray]:
    """Checked frames as uint8 (H, W), all of the first one's size."""
    size: tuple[int, ...] = ()
    for index, frame in enumerate(frames):
        gray = _gray(_as_numpy(frame), index, size)
        size = gray.shape
        yield gray


def _as_numpy(array: Any) -> np.ndarray:
    """A NumPy view (or copy, from a GPU) of an array or PyTorch tensor."""
    return array.numpy(force=True) if hasattr(array, "detach") else np.asarray(array)


def _gray(frame: np.ndarray, index: int, size: tuple[int, ...]) -> np.ndarray:
    """uint8 (H, W) of a frame, after checking it; `size` is the first frame's, () for that one."""
    import cv2

    place = f"frame {index}"
    if frame.dtype != np.uint8:
        raise UsageError(f"{place} is {frame.dtype}; flow needs uint8 in 0..255")
    if frame.ndim != 2 and not (frame.ndim == 3 and frame.shape[2] == 3):
        raise UsageError(
            f"{place} has shape {frame.shape}; flow needs (H, W, 3) RGB or (H, W) gray"
        )
    if min(frame.shape[:2]) < MIN_SIDE:
        raise UsageError(
            f"{place} is {frame.shape[1]}x{frame.shape[0]} pixels; flow needs at least "
            f"{MIN_SIDE}x{MIN_SIDE}: enlarge the video"
        )
    if size and frame.shape[:2] != size:
        raise UsageError(
            f"{place} is {frame.shape[1]}x{frame.shape[0]} pixels, the first one "
            f"{size[1]}x{size[0]}: resize all frames to one size"
        )
    frame = np.ascontiguousarray(frame)
    return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
