"""``i3d predict``: a prediction for every video, as text, JSON or CSV, as soon as it is there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Unpack

from i3d.console import Bar, progress_bar, say, say_written, show, show_text
from i3d.errors import I3DError, UsageError, hide_secrets
from i3d.report.drawing import write_drawing
from i3d.report.plot import check_plot
from i3d.spreadsheet import write_rows
from i3d.tasks.predict.inputs import Input, find_inputs, refuse_own_input
from i3d.tasks.predict.map_video import MapVideo, check_map
from i3d.tasks.predict.options import DEFAULT_CHECKPOINTS, PredictOptions
from i3d.tasks.predict.predictor import PredictArguments, Predictor
from i3d.tasks.predict.result import Look, Prediction
from i3d.tasks.predict.segments import find_answer
from i3d.video import AheadReader

CSV_COLUMNS = ("video", "start_seconds", "end_seconds", "class", "index", "probability", "error")


@dataclass(frozen=True)
class _Predictions:
    """The outcomes of all videos, for a machine."""

    results: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {"results": self.results}


def run_predict(
    options: PredictOptions, names: Sequence[str], early: AheadReader | None = None
) -> int:
    """``i3d predict``: print a prediction for every video; 1 if any failed, else 0.

    Args:
        options: the command's.
        names: videos, as the user named them.
        early: what reads the first of them already.
    """
    if options.as_json and options.as_csv:
        raise UsageError("--json and --csv both print the result; choose one")
    if options.plot is not None:
        check_plot(options.plot)
    if options.map is not None:
        check_map(options.map)
    inputs = find_inputs(names)
    if early is not None:
        inputs[0] = replace(inputs[0], early=early)
    for flag, output in (("--plot", options.plot), ("--map", options.map)):
        if output is not None:
            if len(inputs) > 1:
                raise UsageError(f"{flag} shows one video, not {len(inputs)}; call it for each")
            refuse_own_input(output, inputs[0])
    every_seconds = options.window_seconds
    predictor = Predictor(
        options.checkpoints or DEFAULT_CHECKPOINTS,
        device=options.device,
        runtime=options.runtime,
        progress=True,
    )
    watchers: list[Callable[[Look], None]] = []
    with ExitStack() as stack:
        map_video = None
        if options.map is not None:
            map_video = stack.enter_context(MapVideo(options.map, predictor))
            watchers.append(map_video.add)
        printer = _Printer(options)
        if len(inputs) > 1:
            bar = stack.enter_context(progress_bar("predict", total=len(inputs), unit="videos"))
        elif every_seconds is not None:
            bar = stack.enter_context(progress_bar("predict", unit="s"))
            watchers.append(_tell_windows(bar, predictor))

        def tell_all(look: Look) -> None:
            for watch in watchers:
                watch(look)

        outcomes = _predict_each(
            predictor,
            inputs,
            top_k=options.top_k,
            every_seconds=every_seconds,
            mean=options.mean,
            watch=tell_all,
        )
        for done, (name, outcome) in enumerate(outcomes, 1):
            if len(inputs) > 1:
                bar.update(done)
            printer.add(name, outcome)
            if not isinstance(outcome, Prediction):
                if map_video is not None:
                    map_video.discard()
                continue
            if outcome.still:
                say(f"warning: {name}: a still picture; the networks were trained on what moves")
            if options.plot is not None:
                write_drawing(outcome.draw_timeline(header=True), options.plot)
                say_written(options.plot)
    if not printer.failed:
        say_written(options.map)
    printer.finish()
    if len(inputs) > 1:
        say(f"{len(inputs) - printer.failed} of {len(inputs)} videos predicted")
    return 1 if printer.failed else 0


def _predict_each(
    predictor: Predictor, inputs: Sequence[Input], **options: Unpack[PredictArguments]
) -> Iterator[tuple[str, Prediction | I3DError]]:
    """Name and outcome of each video; what comes on standard input is copied in its turn."""
    for given in inputs:
        try:
            video = given.open()
        except I3DError as error:
            yield given.name, error
            continue
        for outcome in predictor.predict_many([video], **options):
            yield given.name, outcome


def _tell_windows(bar: Bar, predictor: Predictor) -> Callable[[Look], None]:
    """Say of every window what it is called, and how far the video is."""

    def tell(look: Look) -> None:
        window = look.window
        best = find_answer(window.logits)
        span = f"{window.start_seconds:8.2f} -{window.end_seconds:8.2f} s"
        say(f"{span}  {best.probability:7.2%}  {predictor.classes[best.index]}")
        bar.update(round(window.end_seconds, 2), total=look.duration)

    return tell


class _Printer:
    """Prints outcomes as they come, and counts what failed; JSON is one document at the end."""

    def __init__(self, options: PredictOptions) -> None:
        self.failed = 0
        self._options = options
        self._results: list[dict[str, Any]] = []
        if options.as_csv:
            show_text(write_rows([CSV_COLUMNS]).decode())

    def add(self, name: str, outcome: Prediction | I3DError) -> None:
        """Print the outcome of one video."""
        if isinstance(outcome, I3DError):
            self.failed += 1
            say(f"i3d: {outcome}")
        if self._options.as_json:
            self._results.append(
                outcome.as_dict()
                if isinstance(outcome, Prediction)
                else {"video": name, "error": str(outcome)}
            )
        elif self._options.as_csv:
            show_text(write_rows(_rows(name, outcome)).decode())
        elif isinstance(outcome, Prediction):
            show(outcome, as_json=False)

    def finish(self) -> None:
        """Print what waits."""
        if self._options.as_json:
            show(_Predictions(self._results), as_json=True)


def _rows(name: str, outcome: Prediction | I3DError) -> list[tuple[Any, ...]]:
    """A row for each segment; of a video that failed one with its error."""
    if isinstance(outcome, I3DError):
        return [(hide_secrets(name), "", "", "", "", "", hide_secrets(str(outcome)))]
    return [
        (
            outcome.video,
            segment.start_seconds,
            segment.end_seconds,
            segment.name or "",
            "" if segment.index is None else segment.index,
            "" if segment.probability is None else segment.probability,
            "",
        )
        for segment in outcome.segments
    ]
