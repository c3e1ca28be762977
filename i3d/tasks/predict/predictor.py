"""What happens in a video: decode, crop, one forward pass a stream, softmax of the summed logits.

frames (T, H, W, 3) --rgb_clip--> (3, T, 224, 224) --RGB network--> logits --+
  |                                                                          +--> softmax
  +--TV-L1--> (T-1, H, W, 2) --flow_clip--> (2, T-1, 224, 224) --flow net--> logits
"""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from i3d.clips import flow_clip, loop_frames, rgb_clip
from i3d.console import progress_bar, say, show
from i3d.errors import (
    CheckpointError,
    I3DError,
    StorageError,
    UsageError,
    VideoError,
    hide_secrets,
)
from i3d.flow import check_device, optical_flow
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.models.i3d import I3D
from i3d.parallel.process import count_cores
from i3d.parallel.world import World
from i3d.presets import MIN_FRAMES, Preset, find_preset
from i3d.report.plot import check_plot
from i3d.tasks.network import choose_device, compute, explain_overflow, open_network
from i3d.tasks.predict.options import DEFAULT_CHECKPOINTS, PredictOptions
from i3d.tasks.predict.result import Prediction, Window, top_classes
from i3d.tasks.predict.timeline import plot_timeline
from i3d.video import DamagedVideoWarning, Source, VideoReader

PLOT_WINDOW_SECONDS = 2.56  # 64 frames at 25 fps: the snippets that the networks were trained on


def predict(
    video: Source,
    *,
    checkpoints: Sequence[str | os.PathLike[str]] = DEFAULT_CHECKPOINTS,
    top_k: int = 5,
    every_seconds: float | None = None,
    device: str = "auto",
    runtime: str | None = None,
) -> Prediction:
    """Say what happens in a video.

    Args:
        video: path, URL, bytes or file object.
        checkpoints: names or paths (:func:`i3d.load`) of networks with the same classes, or
            ``.onnx`` files of ``i3d export``; their logits are added. A flow network makes TV-L1
            flow be computed.
        top_k: how many classes to give, best first.
        every_seconds: None looks at the first 10 s, as the original's evaluation did. A number
            looks along the whole video, at a window every so many seconds that reaches to the next
            one (at most 10 s).
        device: ``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda"``.
        runtime: ``"torch"``, ``"onnx"`` (ONNX Runtime) or ``"openvino"``; the latter two run
            ``.onnx`` files, on a CPU. None: ONNX Runtime for those, PyTorch for all else.

    Raises:
        VideoError: the video cannot be decoded.
        StorageError: a URL's server or the disk fails.
        CheckpointError: a checkpoint cannot be loaded, or they do not fit together.
        UsageError: an argument has no meaning.
    """
    return Predictor(checkpoints, device=device, runtime=runtime).predict(
        video, top_k=top_k, every_seconds=every_seconds
    )


class Predictor:
    """Networks in memory, for many videos; arguments and errors as :func:`predict`."""

    def __init__(
        self,
        checkpoints: Sequence[str | os.PathLike[str]] = DEFAULT_CHECKPOINTS,
        *,
        device: str = "auto",
        runtime: str | None = None,
        progress: bool = False,
    ) -> None:
        if isinstance(checkpoints, str | os.PathLike):
            checkpoints = [checkpoints]
        if not checkpoints:
            raise UsageError("no checkpoint to predict with; name at least one")
        self.device = choose_device(device)
        self.flow_device = _choose_flow_device(self.device)
        self.checkpoints = tuple(os.fspath(c) for c in checkpoints)
        self.models: list[I3D | ExportedNetwork] = [
            open_network(c, runtime=runtime, device=device, progress=progress)
            for c in self.checkpoints
        ]
        first = self.models[0]
        for name, model in zip(self.checkpoints, self.models, strict=True):
            if model.classes != first.classes:
                raise CheckpointError(
                    f"{name} has {model.num_classes} classes that are not the "
                    f"{first.num_classes} of {self.checkpoints[0]}; their logits cannot be added"
                )
            if not find_preset(model.preset).fits(find_preset(first.preset)):
                raise CheckpointError(
                    f"{name} was made for preset {model.preset}, {self.checkpoints[0]} for "
                    f"{first.preset}; they need different frames"
                )
        self.classes = first.classes
        self.preset: Preset = find_preset(first.preset).of_videos

    def predict(
        self, video: Source, *, top_k: int = 5, every_seconds: float | None = None
    ) -> Prediction:
        """Say what happens in one video; see the function :func:`predict`."""
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; it must be at least 1")
        preset = self.preset
        shortest = MIN_FRAMES / preset.fps
        if every_seconds is not None and not shortest <= every_seconds < math.inf:
            raise UsageError(
                f"every {every_seconds} seconds: a window needs {MIN_FRAMES} frames, "
                f"that is {shortest:.2f} s or more"
            )
        end_seconds = preset.clip_frames / preset.fps if every_seconds is None else None
        windows: list[Window] = []
        frames_seen = 0
        with (
            warnings.catch_warnings(),
            VideoReader(
                video, end_seconds=end_seconds, fps=preset.fps, short_side=preset.short_side
            ) as reader,
        ):
            warnings.simplefilter("ignore", DamagedVideoWarning)  # it goes into the result
            name = reader.name
            clip_frames = preset.clip_frames
            if every_seconds is not None:
                clip_frames = min(clip_frames, round(every_seconds * preset.fps))
            for start, frames in _windows(reader, clip_frames, every_seconds, preset.fps):
                frames_seen += len(frames)
                where = name if every_seconds is None else f"{name}, {start / preset.fps:g} s"
                windows.append(
                    Window(
                        start_seconds=start / preset.fps,
                        end_seconds=(start + len(frames)) / preset.fps,
                        logits=self._logits(frames, clip_frames, where),
                        frame=frames[len(frames) // 2].copy(),
                    )
                )
            damage = reader.damage
        if not windows:
            raise VideoError(f"{name}: no frames")
        logits = np.mean([window.logits for window in windows], axis=0)
        return Prediction(
            video=name,
            frames=frames_seen,
            seconds=frames_seen / preset.fps,
            checkpoints=tuple(map(hide_secrets, self.checkpoints)),
            predictions=top_classes(logits, self.classes, top_k=top_k),
            windows=tuple(windows),
            classes=self.classes,
            damage=damage,
            every_seconds=every_seconds,
        )

    def predict_many(
        self,
        videos: Iterable[Source],
        *,
        top_k: int = 5,
        every_seconds: float | None = None,
    ) -> Iterator[Prediction | I3DError]:
        """Predict one after another; a bad video yields its error and does not stop the rest."""
        for video in videos:
            try:
                yield self.predict(video, top_k=top_k, every_seconds=every_seconds)
            except (VideoError, StorageError) as error:
                yield error

    def _logits(self, frames: np.ndarray, clip_frames: int, where: str) -> np.ndarray:
        """Summed logits float32 (num_classes,) of frames looped to the clip's length.

        Raises:
            VideoError: names ``where``; they have no flow, or a network's logits are not finite.
        """
        preset = self.preset
        clips: dict[str, torch.Tensor] = {}
        total = np.zeros(len(self.classes), np.float32)
        for name, model in zip(self.checkpoints, self.models, strict=True):
            if model.stream not in clips:
                if model.stream == "flow" and len(frames) < 2:
                    raise VideoError(
                        f"{where}: a video of one frame has no flow; use an RGB checkpoint alone"
                    )
                clips[model.stream] = (
                    rgb_clip(loop_frames(frames, clip_frames), crop=preset.crop)
                    if model.stream == "rgb"
                    else self._flow_clip(frames, clip_frames)
                )
            row = compute(model, clips[model.stream][None].to(self.device))[0].cpu().numpy()
            if (reason := _explain_overflow(row, model, name)) is not None:
                raise VideoError(f"{where}: {reason}")
            with np.errstate(over="ignore"):  # said below
                total += row
        if not np.isfinite(total).all():
            raise VideoError(f"{where}: the sum of the networks' logits is too large for float32")
        return total

    def _flow_clip(self, frames: np.ndarray, clip_frames: int) -> torch.Tensor:
        flow = optical_flow(frames, device=self.flow_device, threads=count_cores(World()))
        return flow_clip(loop_frames(flow, clip_frames), crop=self.preset.crop)


def _explain_overflow(logits: np.ndarray, model: I3D | ExportedNetwork, name: str) -> str | None:
    """See `explain_overflow`; an exported network has the precision that it was exported with."""
    precision = "fp32" if isinstance(model, I3D) else model.precision
    return explain_overflow(logits, name, precision, remedy="export it with --precision fp32")


def _choose_flow_device(device: str) -> str:
    """The network's device, or the CPU where that one has no kernels for flow (AMD's GPUs)."""
    try:
        check_device(device)
    except UsageError:
        return "cpu"
    return device


def _windows(
    frames: Iterable[np.ndarray], window_frames: int, every_seconds: float | None, fps: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Cut a stream of frames into windows (first frame's number, frames uint8 (T, H, W, 3)).

    Window k begins at frame round(k * every * fps) and holds window_frames frames. Only one is in
    memory. The last may be shorter; a rest under MIN_FRAMES is left out, unless it is all there is.
    """
    number, start = 0, 0
    kept: list[np.ndarray] = []
    for i, frame in enumerate(frames):
        if i >= start:
            kept.append(frame)
        if len(kept) == window_frames:
            yield start, np.stack(kept)
            kept = []
            if every_seconds is None:
                return
            number += 1
            start = round(number * every_seconds * fps)
    if kept and (len(kept) >= MIN_FRAMES or number == 0):
        yield start, np.stack(kept)


@dataclass(frozen=True)
class _Predictions:
    """The outcomes of all videos, for a person or a machine."""

    results: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {"results": self.results}


def run_predict(options: PredictOptions, videos: Sequence[str]) -> int:
    """``i3d predict``: print a prediction for every video; 1 if any failed, else 0."""
    every_seconds = options.every_seconds
    if options.plot is not None:
        if len(videos) > 1:
            raise UsageError(f"--plot draws one video, not {len(videos)}; call it for each")
        check_plot(options.plot)
        every_seconds = PLOT_WINDOW_SECONDS if every_seconds is None else every_seconds
    predictor = Predictor(
        options.checkpoints or DEFAULT_CHECKPOINTS,
        device=options.device,
        runtime=options.runtime,
        progress=True,
    )
    outcomes = predictor.predict_many(videos, top_k=options.top_k, every_seconds=every_seconds)
    results: list[dict[str, Any]] = []
    failed = 0
    title = "predict" if len(videos) > 1 else None
    with progress_bar(title, total=len(videos), unit="videos") as bar:
        for done, (video, outcome) in enumerate(zip(videos, outcomes, strict=True), 1):
            bar.update(done)
            if isinstance(outcome, Prediction):
                results.append(outcome.as_dict())
                if not options.as_json:
                    show(outcome, as_json=False)
                if options.plot is not None:
                    plot_timeline(outcome, options.plot)
            else:
                failed += 1
                results.append({"video": video, "error": str(outcome)})
                say(f"i3d: {outcome}")
    if options.as_json:
        show(_Predictions(results), as_json=True)
    if len(videos) > 1:
        say(f"{len(videos) - failed} of {len(videos)} videos predicted")
    return 1 if failed else 0
