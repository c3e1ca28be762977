"""Running a network on clips: where, at what precision, how many at a time."""

import os
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch

from i3d import files
from i3d.clips import flow_clip, loop_frames, rgb_clip
from i3d.data.reading.clips import LoadedVideo
from i3d.errors import I3DError, UsageError
from i3d.models.checkpoints import load
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.models.i3d import I3D
from i3d.presets import STREAM_CHANNELS

Precision = Literal["fp32", "bf16", "fp16"]
Runtime = Literal["torch", "onnx", "openvino"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
MAX_BATCH = 64
GAIN = 1.05  # a batch twice as large must be so much faster per clip to be worth its memory
HEADROOM = 0.9  # of the GPU's memory: the allocator's fragments and the next batch's pixels


def forward(
    model: Callable[[torch.Tensor], torch.Tensor],
    clips: torch.Tensor,
    precision: Precision = "fp32",
) -> torch.Tensor:
    """Logits float32 (B, num_classes) of clips (B, C, T, H, W) on the model's device.

    fp32 is full float32: on CUDA, TF32 in cuDNN would cost three digits.
    """
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if precision == "fp32":
            return model(clips)
        with torch.autocast(clips.device.type, dtype=AUTOCAST[precision]):
            return model(clips).float()


def check_precision(precision: str) -> Precision:
    """The precision of that name.

    Raises:
        UsageError: there is none.
    """
    for known in get_args(Precision):
        if precision == known:
            return known
    raise UsageError(f"precision {precision!r}: it must be fp32, bf16 or fp16")


def open_network(
    checkpoint: files.Location,
    *,
    runtime: str | None = None,
    device: str = "auto",
    progress: bool = False,
) -> "I3D | ExportedNetwork":
    """A network by its name or file, on the runtime asked for.

    Args:
        checkpoint: as :func:`i3d.load` takes it, or an ``.onnx`` file of ``i3d export``; path or
            URL.
        runtime: ``"torch"``, ``"onnx"`` or ``"openvino"``; None is ONNX Runtime for an ``.onnx``
            file and PyTorch for all else.
        device: see `choose_device`; the others than PyTorch run on CPUs.
        progress: draw a progress bar while downloading.

    Raises:
        UsageError: the runtime is not installed, or does not fit the file or device.
        CheckpointError: the file is damaged, or not one of ``i3d export``.
    """
    name = os.fspath(checkpoint)
    if runtime is not None and runtime not in get_args(Runtime):
        raise UsageError(f"runtime {runtime!r}: it must be torch, onnx or openvino")
    if name.endswith(".pt2"):
        raise UsageError(
            f"{name}: a .pt2 file can run any code when it is loaded, so i3d never does; "
            "use the checkpoint it was made from, or an .onnx file"
        )
    is_onnx = name.endswith(".onnx")
    if runtime == "torch" and is_onnx:
        raise UsageError(f"{name}: PyTorch does not run .onnx files; use --runtime onnx")
    if runtime in (None, "torch") and not is_onnx:
        return load(checkpoint, device=choose_device(device), progress=progress)
    if not is_onnx:
        raise UsageError(
            f"{name}: --runtime {runtime} runs .onnx files; make one with "
            f"i3d export {name} OUT.onnx"
        )
    if device.startswith("cuda"):
        raise UsageError(
            f"device {device!r}: .onnx files run on the CPU here; use --device cpu, or the "
            "checkpoint itself for CUDA"
        )
    return ExportedNetwork(checkpoint, runtime="openvino" if runtime == "openvino" else "onnx")


def choose_device(device: str, *, local_rank: int = 0) -> str:
    """``"cpu"`` or ``"cuda:N"`` for ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Args:
        device: as the user said it.
        local_rank: number of this process on its node; without a number of its own, ``cuda`` is
            this one's GPU, shared in turn where there are fewer GPUs than processes.

    Raises:
        UsageError: CUDA is asked for and is not there, or another name.
    """
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise UsageError(f"device {device!r}: it must be auto, cpu or cuda")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: this PyTorch sees no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    number = device.removeprefix("cuda").removeprefix(":")
    if device in ("auto", "cuda"):
        return f"cuda:{local_rank % count}"
    if not number.isdecimal() or int(number) >= count:
        raise UsageError(f"device {device!r}: there are cuda:0 to cuda:{count - 1}")
    return f"cuda:{number}"


def find_batch_size(model: I3D, *, frames: int, crop: int, precision: Precision) -> int:
    """How many clips at a time: on CUDA doubled while they fit and a clip gets cheaper.

    On a CPU it is 1: one clip fills the cores, and more of them only fill the memory.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return 1
    best, best_seconds, size = 1, float("inf"), 1
    total = torch.cuda.get_device_properties(device).total_memory
    while size <= MAX_BATCH:
        shape = (size, STREAM_CHANNELS[model.stream], frames, crop, crop)
        try:
            torch.cuda.reset_peak_memory_stats(device)
            seconds = _seconds(model, torch.zeros(shape, device=device), precision) / size
        except torch.cuda.OutOfMemoryError:
            break
        if torch.cuda.max_memory_reserved(device) > HEADROOM * total:
            break
        if seconds * GAIN > best_seconds:
            break
        best, best_seconds, size = size, seconds, 2 * size
    torch.cuda.empty_cache()
    return best


def _seconds(model: I3D, clips: torch.Tensor, precision: Precision) -> float:
    """Time of one forward pass on CUDA, after one that loads and chooses the kernels."""
    forward(model, clips, precision)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    forward(model, clips, precision)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


class Batcher:
    """One stream's network: clips collect until they are a batch, logits until they are a video's.

    Args:
        model: on its device, folded.
        frames: of a clip; shorter ones are looped.
        crop: pixels of a clip's side.
        batch_size: clips at a time; halved when they do not fit into the GPU's memory.
        precision: see `forward`.

    Attributes:
        done: video's index -> float32 (num_classes,), the mean of its views' logits; taken out by
            the caller.
        batch_size: what it is now.
    """

    def __init__(
        self, model: I3D, *, frames: int, crop: int, batch_size: int, precision: Precision
    ) -> None:
        self.model, self.frames, self.crop = model, frames, crop
        self.batch_size, self.precision = batch_size, precision
        self.device = next(model.parameters()).device
        self.done: dict[int, np.ndarray] = {}
        self._clips: list[torch.Tensor] = []
        self._owners: list[int] = []
        self._running: tuple[list[int], torch.Tensor] | None = None
        self._logits: dict[int, list[np.ndarray]] = {}
        self._views: dict[int, int] = {}

    def add(self, video: LoadedVideo) -> None:
        """Cut a video's views, on the device; run the batches that become full."""
        stream = self.model.stream
        to_clip = rgb_clip if stream == "rgb" else flow_clip
        pixels = video.pixels[stream].to(self.device, non_blocking=True)
        starts = video.starts[stream]
        self._views[video.index] = len(starts) * len(video.corners)
        self._logits[video.index] = []
        for start in starts:
            looped = loop_frames(pixels[start : start + self.frames], self.frames)
            for top, left in video.corners:
                view = looped[:, top : top + self.crop, left : left + self.crop]
                self._clips.append(to_clip(view, crop=self.crop))
                self._owners.append(video.index)
                if len(self._clips) == self.batch_size:
                    self._launch()

    def finish(self) -> None:
        """Run what is left."""
        self._launch()
        self._collect()

    def _launch(self) -> None:
        """Start a batch; only then wait for the one before, so that the device never idles."""
        while self._clips:
            count = min(self.batch_size, len(self._clips))
            try:
                logits = forward(self.model, torch.stack(self._clips[:count]), self.precision)
            except torch.cuda.OutOfMemoryError:
                if count == 1:
                    raise I3DError(
                        f"one clip of {self.frames} frames does not fit into the memory of "
                        f"{self.device}; use fewer --frames, or --device cpu"
                    ) from None
                self.batch_size = count // 2
                torch.cuda.empty_cache()
                continue
            owners = self._owners[:count]
            del self._clips[:count], self._owners[:count]
            self._collect()
            self._running = owners, logits

    def _collect(self) -> None:
        """Hand the running batch's logits to their videos."""
        if self._running is None:
            return
        owners, logits = self._running
        self._running = None
        for owner, row in zip(owners, logits.cpu().numpy(), strict=True):
            rows = self._logits[owner]
            rows.append(row)
            if len(rows) == self._views[owner]:
                # float64, in the order of the views: how they were batched does not matter
                mean: np.ndarray = np.stack(rows).mean(0, dtype=np.float64)
                self.done[owner] = mean.astype(np.float32)
                del self._logits[owner], self._views[owner]
