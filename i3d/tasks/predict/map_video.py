"""A video with its activation maps over it: what the networks call it, and where they see that.

Look --find_answer--> class --activation_map, upsample_map--> evidence (T, crop, crop)
frames, flow, evidence --map_picture--> pictures --> .mp4
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import PurePath
from types import TracebackType
from typing import Protocol

import numpy as np
import torch

from i3d import files
from i3d.errors import UsageError
from i3d.flow.color import flow_to_color
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.models.i3d import I3D
from i3d.presets import STREAMS, Preset, Stream
from i3d.report.plot import check_folder
from i3d.tasks.predict.activation import activation_map, upsample_map
from i3d.tasks.predict.map_picture import Layout, draw_caption, draw_picture, draw_title
from i3d.tasks.predict.result import Look, Window
from i3d.tasks.predict.segments import Part, divide, find_answer, inner_cuts
from i3d.video.writer import Mp4Writer

_TITLES: dict[Stream, str] = {"rgb": "RGB", "flow": "flow"}


class Networks(Protocol):
    """What is asked of a `Predictor`, whose file imports this one."""

    checkpoints: tuple[str, ...]
    models: list[I3D | ExportedNetwork]
    classes: tuple[str, ...]
    preset: Preset


def check_map(output: files.Location) -> None:
    """Refuse before the work a video of maps that could not be written after it.

    Raises:
        UsageError: a name that does not end in .mp4, or a folder that is not there or cannot be
            written to.
    """
    if PurePath(os.fspath(output)).suffix.lower() != ".mp4":
        raise UsageError(f"{output}: a video of maps is an .mp4 file; end the name so")
    check_folder(output)


class MapVideo:
    """A video of what the networks see where, written window by window.

        with MapVideo("where.mp4", predictor) as video:
            predictor.predict("cricket.mp4", every_seconds=2.56, watch=video.add)

    Each stream has its picture: the frames, or the flow in its usual colours. Outside of the square
    that the networks see it is dark. Over the square lies the map of the window's most probable
    class, added up over the stream's networks: from nothing over violet and orange to yellow, the
    more the more evidence, with a line around what has half of the largest or more. Evidence
    against the class is not drawn. Yellow is the largest value in the window, of all its streams,
    since their logits are added: so moments, places and streams within a window can be compared,
    and windows cannot. Under it stands what the window is called (`find_answer`): the class and its
    probability, or ``uncertain``, and of which class the map is.

    Where a cut divides a window, each part has the answer that it has in the segments
    (`i3d.tasks.predict.segments`), and the map of that: for which such a window waits for the next.

    Only what was looked at is in the video, once, at the preset's 25 frames a second. In memory is
    a window at a time, or two.

    Args:
        output: path or URL, which is written when the video is whole.
        predictor: whose looks are added.

    Raises:
        UsageError: a network whose layers cannot be seen.
        OSError: it cannot be written.
    """

    def __init__(self, output: files.Location, predictor: Networks) -> None:
        for name, model in zip(predictor.checkpoints, predictor.models, strict=True):
            if isinstance(model, ExportedNetwork):
                raise UsageError(
                    f"{name}: --map needs the network's layers, which an exported one does not "
                    "show; use the checkpoint that it was made from"
                )
        self._output, self._predictor = output, predictor
        self._before: Window | None = None
        self._waiting: Look | None = None
        self._opened = ExitStack()  # the temporary file, and the video in it
        self._writer: Mp4Writer | None = None

    def add(self, look: Look) -> None:
        """Write a window's pictures, after those of the windows before."""
        try:
            if self._waiting is not None:
                self._show(self._waiting, look.window)
            if inner_cuts(look.window):
                self._waiting = look
            else:
                self._show(look, None)
        except BaseException as error:
            self._leave(error)
            raise

    def close(self) -> None:
        """Give the file its name. Where no window was added there is none."""
        if self._waiting is not None:
            try:
                self._show(self._waiting, None)
            except BaseException as error:
                self._leave(error)
                raise
        self._before = None
        if self._writer is not None:
            self._writer = None
            self._opened.close()
            files.remove_leftovers([self._output])

    def discard(self) -> None:
        """Remove what was written since the last `close`."""
        self._leave(_Discarded())

    def __enter__(self) -> "MapVideo":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._leave(error)

    def _leave(self, error: BaseException) -> None:
        self._writer = self._waiting = self._before = None
        self._opened.__exit__(type(error), error, error.__traceback__)

    def _show(self, look: Look, after: Window | None) -> None:
        """Write a window's pictures, when it is known what is before and after it."""
        for picture in self._draw(look, divide(look.window, self._before, after)):
            self._write(picture)
        self._before, self._waiting = look.window, None

    def _write(self, picture: np.ndarray) -> None:
        if self._writer is None:
            path = self._opened.enter_context(files.atomic_file(self._output))
            height, width = picture.shape[:2]
            self._writer = self._opened.enter_context(
                Mp4Writer(path, width=width, height=height, fps=self._predictor.preset.fps)
            )
        self._writer.write(picture)

    def _draw(self, look: Look, parts: Sequence[Part]) -> Iterator[np.ndarray]:
        """The pictures of a window, uint8 (H, W, 3)."""
        preset, window = self._predictor.preset, look.window
        height, width = look.frames.shape[1:3]
        longest = None if look.flow is None else _longest_vector(look.flow)
        for part in parts:
            answer = find_answer(part.window.logits)
            evidence = self._find_shares(look, answer.index)
            layout = Layout.fit(height, width, preset, len(evidence))
            first, last = (
                round(preset.fps * (seconds - window.start_seconds))
                for seconds in (part.start_seconds, part.end_seconds)
            )
            for i in range(first, last):
                canvas = layout.canvas()
                for panel, (stream, shares) in enumerate(evidence.items()):
                    picture = look.frames[i]
                    if stream == "flow":
                        # From each frame to the next: the last one shows the flow that led to it.
                        assert look.flow is not None
                        step = min(i, len(look.flow) - 1)
                        picture = flow_to_color(look.flow[step], max_pixels=longest)
                    place = layout.place(canvas, panel)
                    draw_picture(place, picture, shares[min(i, len(shares) - 1)], layout, stream)
                    if len(evidence) > 1:
                        draw_title(place, _TITLES[stream])
                draw_caption(
                    canvas,
                    self._predictor.classes[answer.index],
                    answer.probability,
                    is_sure=answer.is_sure,
                    seconds=window.start_seconds + i / preset.fps,
                    span=f"window {window.start_seconds:.1f} – {window.end_seconds:.1f} s",
                )
                yield canvas

    def _find_shares(self, look: Look, index: int) -> dict[Stream, np.ndarray]:
        """`_find_evidence` as shares of the largest, of all streams."""
        evidence = self._find_evidence(look, index)
        largest = max(float(values.max()) for values in evidence.values())
        if largest <= 0:
            return evidence
        return {stream: values / largest for stream, values in evidence.items()}

    def _find_evidence(self, look: Look, index: int) -> dict[Stream, np.ndarray]:
        """Stream -> the class's evidence, float32 (T, crop, crop); of a looped clip once."""
        sums: dict[Stream, torch.Tensor] = {}
        for model in self._predictor.models:
            assert isinstance(model, I3D)  # others were refused
            map_ = activation_map(model, look.clips[model.stream], index)
            sums[model.stream] = sums[model.stream] + map_ if model.stream in sums else map_
        return {
            stream: upsample_map(sums[stream], *look.clips[stream].shape[1:3]).numpy()[
                : len(look.frames)
            ]
            for stream in STREAMS
            if stream in sums
        }


class _Discarded(Exception):
    """A video that nobody wants any more."""


def _longest_vector(flow: np.ndarray) -> float:
    """Pixels that have the full colour in a window's flow: a few wild vectors are longer."""
    lengths = [np.percentile(np.hypot(step[..., 0], step[..., 1]), 99.5) for step in flow]
    return max(1.0, float(np.max(lengths)))  # what hardly moves stays white
