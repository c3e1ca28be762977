"""What happens in a video: decode, crop, one forward pass a stream, softmax of the summed logits.

frames (T, H, W, 3) --rgb_clip--> (3, T, 224, 224) --RGB network--> logits --+
  |                                                                          +--> softmax
  +--TV-L1--> (T-1, H, W, 2) --flow_clip--> (2, T-1, 224, 224) --flow net--> logits
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypedDict, Unpack, cast, overload

import cv2
import numpy as np
import torch

from i3d.clips import flow_clip, loop_frames, rgb_clip
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
from i3d.presets import MIN_FRAMES, Preset, Stream, find_preset
from i3d.tasks.network import (
    choose_device,
    compute,
    explain_overflow,
    is_out_of_memory,
    load_network,
    open_network,
)
from i3d.tasks.predict.options import DEFAULT_CHECKPOINTS
from i3d.tasks.predict.result import (
    ClassScore,
    Look,
    Prediction,
    Window,
    top_classes,
)
from i3d.tasks.predict.segments import find_cuts, find_segments
from i3d.video import AheadReader, FrameReader, Source, VideoReader

MOST_SECONDS = 366 * 86400.0  # from one window to the next
THUMBNAIL_PIXELS = 128  # short side of the frames that are kept to be shown

# What is looked at: a file, one that is being read already, or frames uint8 (T, H, W, 3), RGB.
Video = Source | AheadReader | np.ndarray | torch.Tensor
# A checkpoint's name or file (:func:`i3d.load`), an ``.onnx`` file, or a network in memory.
Checkpoint = str | os.PathLike[str] | I3D


def predict(
    video: Video,
    checkpoints: Checkpoint | Sequence[Checkpoint] = DEFAULT_CHECKPOINTS,
    *,
    top_k: int = 5,
    every_seconds: float | None = None,
    mean: bool = False,
    fps: float | None = None,
    device: str = "auto",
    runtime: str | None = None,
) -> Prediction:
    """Say what happens in a video.

    Args:
        video: path, URL, bytes, file object, or frames uint8 (T, H, W, 3), RGB, as an array or
            tensor of any size.
        checkpoints: one or several networks with the same classes, whose logits are added: names or
            paths (:func:`i3d.load`), folders of ``i3d train``, ``.onnx`` files of ``i3d export``,
            or networks in memory. A flow network makes TV-L1 flow be computed.
        top_k: how many classes to give, best first.
        every_seconds: None looks at the first 10 s, as the original's evaluation did. A number
            looks along the whole video, at a window every so many seconds that reaches to the next
            one (at most 10 s).
        mean: along a video, also give the classes of the windows' mean logits.
        fps: frames a second of an array; None: 25, as `read_video` gives them.
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
        video, top_k=top_k, every_seconds=every_seconds, mean=mean, fps=fps
    )


class PredictArguments(TypedDict, total=False):
    """What `Predictor.predict` takes beside the video."""

    top_k: int
    every_seconds: float | None
    mean: bool
    fps: float | None
    watch: Callable[[Look], None] | None


class Predictor:
    """Networks in memory, for many videos; arguments and errors as :func:`predict`.

        predictor = i3d.Predictor("rgb_imagenet_kinetics400")
        predictor("a.mp4")                       # a Prediction
        predictor(["a.mp4", frames])             # a list of them

    Attributes:
        models: the networks.
        classes: their classes, in the order of the logits.
        preset: how frames are prepared.
        device: where they are.
    """

    def __init__(
        self,
        checkpoints: Checkpoint | Sequence[Checkpoint] = DEFAULT_CHECKPOINTS,
        *,
        device: str = "auto",
        runtime: str | None = None,
        progress: bool = False,
    ) -> None:
        if isinstance(checkpoints, str | os.PathLike | I3D):
            checkpoints = [checkpoints]
        if not checkpoints:
            raise UsageError("no checkpoint to predict with; name at least one")
        self.device = choose_device(device)
        self.flow_device = _choose_flow_device(self.device)
        self.models: list[I3D | ExportedNetwork] = []
        names = []
        for checkpoint in checkpoints:
            if isinstance(checkpoint, I3D):
                network = load_network(checkpoint, device=self.device)
                self.models.append(network.model)
                names.append(network.title)
            else:
                names.append(os.fspath(checkpoint))
                self.models.append(
                    open_network(checkpoint, runtime=runtime, device=device, progress=progress)
                )
        self.checkpoints = tuple(names)
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

    @overload  # a str is a sequence of them, too, and is one video
    def __call__(  # type: ignore[overload-overlap]
        self, videos: Video, **options: Unpack[PredictArguments]
    ) -> Prediction: ...

    @overload
    def __call__(
        self, videos: Sequence[Video] | Iterator[Video], **options: Unpack[PredictArguments]
    ) -> list[Prediction]: ...

    def __call__(
        self, videos: Video | Sequence[Video] | Iterator[Video], **options: Unpack[PredictArguments]
    ) -> Prediction | list[Prediction]:
        """Say what happens in a video, or in each of several.

        Args:
            videos: one, or a list or iterator of them. The first bad one raises its error; see
                `predict_many`.
            options: of `predict`.
        """
        if _is_video(videos):
            return self.predict(cast(Video, videos), **options)
        return [self.predict(video, **options) for video in cast(Iterable[Video], videos)]

    def predict(
        self,
        video: Video,
        *,
        top_k: int = 5,
        every_seconds: float | None = None,
        mean: bool = False,
        fps: float | None = None,
        watch: Callable[[Look], None] | None = None,
    ) -> Prediction:
        """Say what happens in one video; see the function :func:`predict`.

        Args:
            watch: called with every window as soon as it is computed.
        """
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; it must be at least 1")
        preset = self.preset
        shortest = MIN_FRAMES / preset.fps
        if every_seconds is not None and not shortest <= every_seconds <= MOST_SECONDS:
            raise UsageError(
                f"every {every_seconds} seconds: a window needs {MIN_FRAMES} frames, "
                f"that is {shortest:.2f} s or more, and there is one a year at least"
            )
        if mean and every_seconds is None:
            raise UsageError("the mean is over windows along a video; give every_seconds as well")
        windows: list[Window] = []
        frames_seen, still = 0, True
        first: np.ndarray | None = None
        with self._open(video, every_seconds is None, fps) as reader:
            for look in self._look_along(reader, every_seconds):
                windows.append(look.window)
                frames_seen += len(look.frames)
                first = look.frames[0].copy() if first is None else first
                still = still and all(np.array_equal(first, frame) for frame in look.frames)
                if watch is not None:
                    watch(look)
            opened = _opened(reader)
            name, damage, duration = opened.name, opened.damage, _duration(reader)
        if not windows:
            raise VideoError(f"{name}: no frames")
        shown: tuple[ClassScore, ...] = ()
        if mean or every_seconds is None:
            logits = np.mean([window.logits for window in windows], axis=0)
            shown = top_classes(logits, self.classes, top_k=top_k)
        return Prediction(
            video=name,
            frames=frames_seen,
            seconds=frames_seen / preset.fps,
            duration=duration,
            checkpoints=tuple(map(hide_secrets, self.checkpoints)),
            predictions=shown,
            segments=find_segments(windows, self.classes),
            windows=tuple(windows),
            classes=self.classes,
            top_k=top_k,
            damage=damage,
            every_seconds=every_seconds,
            still=still,
        )

    def predict_many(
        self, videos: Iterable[Video], **options: Unpack[PredictArguments]
    ) -> Iterator[Prediction | I3DError]:
        """Predict one after another; a bad video yields its error and does not stop the rest.

        Args:
            videos: of which each is read when its turn comes.
            options: of `predict`.
        """
        for video in videos:
            try:
                yield self.predict(video, **options)
            except (VideoError, StorageError) as error:
                yield error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                source = video.source if isinstance(video, AheadReader) else video
                name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the video"
                yield I3DError(
                    f"{name}: its clip does not fit into the memory of {self.device}; use a "
                    "shorter --every, or --device cpu"
                )

    def _open(self, video: Video, clip_alone: bool, fps: float | None) -> AheadReader | FrameReader:
        preset = self.preset
        end_seconds = preset.clip_frames / preset.fps if clip_alone else None
        if isinstance(video, np.ndarray | torch.Tensor):
            return FrameReader(
                video,
                source_fps=preset.fps if fps is None else fps,
                end_seconds=end_seconds,
                fps=preset.fps,
                short_side=preset.short_side,
            )
        if fps is not None:
            raise UsageError(f"fps={fps} is of frames in an array; a file says its own")
        wanted = (end_seconds, preset.fps, preset.short_side)
        if isinstance(video, AheadReader):
            if (video.end_seconds, video.fps, video.short_side) == wanted:
                return video
            video.close()
            video = video.source
        return AheadReader(
            video, end_seconds=end_seconds, fps=preset.fps, short_side=preset.short_side
        )

    def _look_along(
        self, reader: AheadReader | FrameReader, every_seconds: float | None
    ) -> Iterator[Look]:
        """Every window of a video, as soon as its frames are there."""
        fps = self.preset.fps
        windows = _windows(reader, self.preset.clip_frames, every_seconds, fps)
        last: tuple[int, np.ndarray] | None = None  # the frame before, and the next one's number
        for start, frames, clip_frames in windows:
            name = _opened(reader).name
            where = name if every_seconds is None else f"{name}, {start / fps:g} s"
            flow = self._flow(frames, where)
            clips = self._clips(frames, flow, clip_frames)
            before = last[1] if last is not None and last[0] == start else None
            last = start + len(frames), frames[-1]
            window = Window(
                start_seconds=start / fps,
                end_seconds=(start + len(frames)) / fps,
                logits=self._logits(clips, where),
                frame=_thumbnail(frames[len(frames) // 2]),
                cuts=tuple((start + i) / fps for i in find_cuts(frames, before=before)),
            )
            yield Look(window, frames, flow, clips, _duration(reader))

    def _flow(self, frames: np.ndarray, where: str) -> np.ndarray | None:
        """float32 (T - 1, H, W, 2), where a network wants it.

        Raises:
            VideoError: names ``where``; one frame has none.
        """
        if not any(model.stream == "flow" for model in self.models):
            return None
        if len(frames) < 2:
            raise VideoError(
                f"{where}: a video of one frame has no flow; use an RGB checkpoint alone"
            )
        return optical_flow(frames, device=self.flow_device, threads=count_cores(World()))

    def _clips(
        self, frames: np.ndarray, flow: np.ndarray | None, clip_frames: int
    ) -> dict[Stream, torch.Tensor]:
        """What the networks are given, looped to the clip's length."""
        clips: dict[Stream, torch.Tensor] = {}
        if any(model.stream == "rgb" for model in self.models):
            clips["rgb"] = rgb_clip(loop_frames(frames, clip_frames), crop=self.preset.crop)
        if flow is not None:
            clips["flow"] = flow_clip(loop_frames(flow, clip_frames), crop=self.preset.crop)
        return clips

    def _logits(self, clips: Mapping[Stream, torch.Tensor], where: str) -> np.ndarray:
        """Summed logits float32 (num_classes,).

        Raises:
            VideoError: names ``where``; a network's logits are not finite.
        """
        total = np.zeros(len(self.classes), np.float32)
        for name, model in zip(self.checkpoints, self.models, strict=True):
            row = compute(model, clips[model.stream][None].to(self.device))[0].cpu().numpy()
            if (reason := _explain_overflow(row, model, name)) is not None:
                raise VideoError(f"{where}: {reason}")
            with np.errstate(over="ignore"):  # said below
                total += row
        if not np.isfinite(total).all():
            raise VideoError(f"{where}: the sum of the networks' logits is too large for float32")
        return total


def _is_video(videos: Video | Iterable[Video]) -> bool:
    """Whether it is one video, and not several."""
    one = str | os.PathLike | bytes | bytearray | memoryview | np.ndarray | torch.Tensor
    return isinstance(videos, one | AheadReader) or hasattr(videos, "read")


def _opened(reader: AheadReader | FrameReader) -> VideoReader | FrameReader:
    """What knows the video's name and length."""
    return reader.reader if isinstance(reader, AheadReader) else reader


def _duration(reader: AheadReader | FrameReader) -> float | None:
    """Seconds of the whole video: counted where it was read to its end, else the header's word."""
    opened = _opened(reader)
    if opened.duration_seconds is None and isinstance(opened, VideoReader):
        return opened.info.duration_seconds
    return opened.duration_seconds


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """A copy of a frame, small enough to keep one for each window of a long video."""
    height, width = frame.shape[:2]
    scale = min(1.0, THUMBNAIL_PIXELS / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


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
    frames: Iterable[np.ndarray], most: int, every_seconds: float | None, fps: int
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Cut a stream of frames into windows.

    Window k begins at frame round(k * every * fps) and reaches to the next one, or holds ``most``
    frames. Only one is in memory. The last may be shorter; a rest under MIN_FRAMES is left out,
    unless it is all there is.

    Returns:
        Of each window its first frame's number, its frames uint8 (T, H, W, 3), and how many it has
        where the video does not end before.
    """

    def begin(number: int) -> int:
        return most * number if every_seconds is None else round(number * every_seconds * fps)

    number, start, length = 0, 0, min(most, begin(1))
    kept: list[np.ndarray] = []
    for i, frame in enumerate(frames):
        if i >= start:
            kept.append(frame)
        if len(kept) == length:
            yield start, np.stack(kept), length
            number += 1
            kept, start = [], begin(number)
            length = min(most, begin(number + 1) - start)
    if kept and (len(kept) >= MIN_FRAMES or number == 0):
        yield start, np.stack(kept), length
