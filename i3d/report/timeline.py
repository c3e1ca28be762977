"""What happens when, as a picture: a row a class, a box a window, filled by the probability.

     names |[ thumbnails, each over the time that it is of      ]
    waving |[##][##]|            |
    sitting|        |[##]        |
  uncertain|        |    :....:  |     no class is sure enough here
           |________|____________|____ seconds

`lay_out_timeline` decides all of it; what it returns is drawn by `i3d.report.drawing`.

Of a long video a pixel would be many windows: those share a box, which has the highest probability
of them. So the number of marks depends on the picture's width, and not on the video's length.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import cv2
import numpy as np

from i3d.errors import shown
from i3d.report.drawing import LOOKS, Drawing, Image, Line, Mark, Rectangle, Text

WIDTH = 940.0
RIGHT = 22.0  # beside the plot, for half of the last time
NAMES_WIDTH = (84.0, 230.0)  # at least and at most, of the column of names
HEADER_HEIGHT = 32.0
THUMBNAIL_HEIGHT = 54.0
THUMBNAIL_ASPECT = (0.5, 2.0)  # width by height, at least and at most; the rest is cut off
LEAST_THUMBNAIL = 30.0  # width; under it a thumbnail has no window's width, but its own
ROW_HEIGHT, SMALL_ROW_HEIGHT = 24.0, 16.0
MANY_ROWS = 24  # from which they are small
MAX_ROWS = 100
OTHERS = 3  # rows of classes that no segment has; more where there are fewer rows than
FEW_ROWS = 5
TICK_PIXELS = 64.0  # between two times of the axis, at least
NOT_LOOKED_AT = "not looked at"
NOT_LOOKED_AT_PIXELS = 84.0  # width from which a gap has the words in it
LEAST_BOX = 3.0  # width of a box; what is narrower shares one
LEAST_SEEN = 1.0  # width of a gap or of a mark of doubt
BOUNDARY_PIXELS = 6.0  # a segment, on average: under it no line is drawn between them
VALUE_PIXELS = 38.0  # width from which a box has its number in it
LEAST_SHOWN = 0.01  # probability; a box of less is left out
FULL = 0.85  # probability; on a box of more, white is read best
STEPS = 20  # of the probability, where equal neighbours are merged
MAX_BOXES = 3_000  # the least probable go first
MAX_NAME = 60  # characters, of whatever width
TICKS = (
    *(0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900),
    *(1800, 3600, 7200, 10800, 21600, 43200, 86400),
)  # fmt: skip
CLOCK_FROM = 120.0  # seconds; from here on the axis has minutes


class Window(Protocol):
    """A stretch of a video that was looked at, and a frame of it, uint8 (H, W, 3)."""

    @property
    def start_seconds(self) -> float:
        """Its beginning."""

    @property
    def end_seconds(self) -> float:
        """Its end."""

    @property
    def frame(self) -> np.ndarray:
        """The middle one."""


class Segment(Protocol):
    """Neighbouring windows of one class."""

    @property
    def start_seconds(self) -> float:
        """Its beginning."""

    @property
    def end_seconds(self) -> float:
        """Its end."""

    @property
    def index(self) -> int | None:
        """The class; None where none is sure."""

    @property
    def probability(self) -> float | None:
        """The class's; None where none is sure."""


@dataclass(frozen=True)
class Truth:
    """What does happen in a part of a video, to be outlined: ``index`` is the class."""

    index: int
    start_seconds: float
    end_seconds: float


_Gap = tuple[tuple[float, float, float, float], str]  # x, y, width and height; label


@dataclass(frozen=True)
class _Place:
    """Where the plot is, and how seconds become pixels."""

    left: float
    scale: float  # pixels a second
    top: float  # of the first row
    row_height: float
    rows: int

    @property
    def bottom(self) -> float:
        return self.top + self.rows * self.row_height

    @property
    def right(self) -> float:
        return WIDTH - RIGHT

    def x(self, seconds: float) -> float:
        return self.left + self.scale * seconds

    def y(self, row: int) -> float:
        return self.top + row * self.row_height


def lay_out_timeline(
    windows: Sequence[Window],
    shares: np.ndarray,
    classes: Sequence[str],
    segments: Sequence[Segment],
    *,
    end_seconds: float = 0.0,
    truth: Sequence[Truth] = (),
    title: str = "",
    caption: str = "",
) -> Drawing:
    """Decide where everything is.

    Every class that a segment has gets a row, of the truth's classes too, and a few of the most
    probable others; with more than `MAX_ROWS` the ones that are seldom on share the last row. The
    truth's rows are first, then the others in the order of their first time.

    Args:
        windows: in the order of time, at least one.
        shares: probabilities, float (windows, classes).
        classes: names, other people's text.
        segments: in the order of time; see `i3d.tasks.predict.segments`.
        end_seconds: of the video; what lies behind the last window is marked as not looked at.
        truth: what does happen, in the order of time.
        title: of the video, other people's text; "" leaves the header out.
        caption: what was looked at, in words; beside the title.

    Returns:
        Its ``data`` are ``left``, the x of the video's beginning, ``scale``, pixels a second, and
        ``bottom``, the y of the axis.
    """
    end = max(windows[-1].end_seconds, end_seconds if math.isfinite(end_seconds) else 0.0)
    rows, rest = _choose_rows(windows, shares, segments, truth)
    doubt = any(segment.index is None for segment in segments)
    names = [_visible(classes[index]) for index in rows]
    names += [f"{len(rest)} other classes"] * bool(rest) + ["uncertain"] * doubt
    kind = "name" if len(names) <= MANY_ROWS else "small-name"
    size = LOOKS[kind].size
    least, most = NAMES_WIDTH
    left = min(most, max(least, 14 + max(_text_width(name, size) for name in names)))
    header = HEADER_HEIGHT if title else 0.0
    place = _Place(
        left=left,
        scale=(WIDTH - RIGHT - left) / end,
        top=header + THUMBNAIL_HEIGHT + 12,
        row_height=ROW_HEIGHT if kind == "name" else SMALL_ROW_HEIGHT,
        rows=len(names),
    )
    columns = _columns(windows, place)
    row_of = {index: row for row, index in enumerate(rows)}
    row_of |= dict.fromkeys(rest, len(rows))
    gaps = list(_gaps(windows, end, place))
    marks: list[Mark] = []
    if title:
        marks += _header(title, caption)
    marks += (Rectangle("gap", *box, label=label) for box, label in gaps)
    marks += (
        Text("gap-name", x + width / 2, y + height / 2 + 4, NOT_LOOKED_AT, "middle")
        for (x, y, width, height), _ in gaps
        if width >= NOT_LOOKED_AT_PIXELS
    )
    marks += _thumbnails(windows, place, header)
    marks += _row_names(names, place, kind, doubt)
    marks += _boxes(windows, shares, classes, columns, row_of, place)
    if doubt:
        marks += _doubts(windows, shares, classes, segments, place)
    marks += _boundaries(segments, place)
    marks += _values(windows, shares, row_of, place)
    marks += (
        Rectangle(
            "truth",
            place.x(part.start_seconds),
            place.y(row_of[part.index]),
            place.scale * (part.end_seconds - part.start_seconds),
            place.row_height,
        )
        for part in truth
    )
    marks += _axis(end, place)
    height = place.bottom + 28
    notes = _notes(windows, columns, gaps, end)
    if notes:
        marks.append(Text("caption", left, height + 8, "; ".join(notes)))
        height += 18
    return Drawing(
        width=WIDTH,
        height=height,
        title="Probability of each class over the time of the video",
        marks=tuple(marks),
        data={"left": place.left, "scale": place.scale, "bottom": place.bottom},
    )


# --- rows and columns -----------------------------------------------------------------------------


def _choose_rows(
    windows: Sequence[Window],
    shares: np.ndarray,
    segments: Sequence[Segment],
    truth: Sequence[Truth],
) -> tuple[list[int], list[int]]:
    """Classes that have a row, from the top, and those that share one."""
    first: dict[int, float] = {}  # class -> the time of its first segment, or of its peak
    weight: dict[int, float] = {}  # class -> seconds, by probability
    for segment in segments:
        if segment.index is not None:
            first.setdefault(segment.index, segment.start_seconds)
            seconds = segment.end_seconds - segment.start_seconds
            weight[segment.index] = weight.get(segment.index, 0.0) + seconds * (
                segment.probability or 0.0
            )
    given = list(dict.fromkeys(part.index for part in truth))[:MAX_ROWS]
    winners = [index for index in first if index not in given]
    room = MAX_ROWS - len(given)
    if len(winners) > room:
        kept = set(sorted(winners, key=lambda index: -weight[index])[: max(0, room - 1)])
        return given + [i for i in winners if i in kept], [i for i in winners if i not in kept]
    wanted = min(max(OTHERS, FEW_ROWS - len(winners) - len(given)), room - len(winners))
    peaks = shares.max(0)
    peaks[[*given, *winners]] = 0
    for index in np.argsort(-peaks, kind="stable")[:wanted].tolist():
        if peaks[index] >= LEAST_SHOWN:
            first[index] = windows[int(shares[:, index].argmax())].start_seconds
    return given + sorted((i for i in first if i not in given), key=lambda i: first[i]), []


def _columns(windows: Sequence[Window], place: _Place) -> list[range]:
    """The windows of each column of boxes: one, or as many as it takes to be seen."""
    narrowest = (place.right - place.left) / len(windows)
    if narrowest >= LEAST_BOX:
        return [range(i, i + 1) for i in range(len(windows))]
    middles = np.array([(w.start_seconds + w.end_seconds) / 2 for w in windows])
    slots = (place.scale * middles // LEAST_BOX).astype(int)
    edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(windows)]
    return [range(a, b) for a, b in pairwise(edges)]


def _gaps(windows: Sequence[Window], end: float, place: _Place) -> Iterator[_Gap]:
    """Boxes of the times that nobody looked at, with their labels."""
    seen = 0.0
    spans = [(w.start_seconds, w.end_seconds) for w in windows]
    for start, stop in [*spans, (end, end)]:
        if place.scale * (start - seen) >= LEAST_SEEN:
            box = (place.x(seen), place.top, place.scale * (start - seen))
            yield (*box, place.bottom - place.top), f"{_span(seen, start)}: {NOT_LOOKED_AT}"
        seen = max(seen, stop)


# --- marks ----------------------------------------------------------------------------------------


def _header(title: str, caption: str) -> Iterator[Mark]:
    room = WIDTH - RIGHT - _text_width(caption, LOOKS["caption"].size) - 24
    yield Text("title", 4, 18, _fit(_visible(title), room, 1.08 * LOOKS["title"].size))
    yield Text("caption", WIDTH - RIGHT, 18, caption, "end")


def _thumbnails(windows: Sequence[Window], place: _Place, y: float) -> Iterator[Mark]:
    """Frames over the middles of their windows, as many as have room, and what they are of."""
    images: list[Mark] = []
    spans: list[Mark] = []
    free = place.left  # from here on
    for window in windows:
        start, stop = place.x(window.start_seconds), place.x(window.end_seconds)
        height, width = window.frame.shape[:2]
        least, most = THUMBNAIL_ASPECT
        natural = THUMBNAIL_HEIGHT * min(most, max(least, width / height))
        own = stop - start - 1
        shown_width = min(natural, own) if own >= LEAST_THUMBNAIL else natural
        x = (start + stop - shown_width) / 2
        if x < free - 1e-6 or x + shown_width > place.right + 1e-6:
            continue
        free = x + shown_width + 1
        label = _span(window.start_seconds, window.end_seconds)
        box = (x, y, shown_width, THUMBNAIL_HEIGHT)
        images.append(Image("thumbnail", *box, pixels=_cut(window.frame, *box[2:]), label=label))
        if own < LEAST_THUMBNAIL:
            width = max(1.5, own)
            x = (start + stop - width) / 2
            spans.append(Rectangle("when", x, y + THUMBNAIL_HEIGHT + 3, width, 3))
    yield from images
    yield from spans


def _cut(frame: np.ndarray, width: float, height: float) -> np.ndarray:
    """The middle of a frame, for a box of that size on a screen of twice its pixels."""
    rows, columns = frame.shape[:2]
    keep_rows = max(1, min(rows, round(columns * height / width)))
    keep_columns = max(1, min(columns, round(rows * width / height)))
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    part = frame[top : top + keep_rows, left : left + keep_columns]
    size = max(1, round(2 * width)), max(1, round(2 * height))
    return cv2.resize(np.ascontiguousarray(part), size, interpolation=cv2.INTER_AREA)


def _row_names(names: Sequence[str], place: _Place, kind: str, doubt: bool) -> Iterator[Mark]:
    for row in range(len(names) + 1):
        yield Line("row", place.left, place.y(row), place.right, place.y(row))
    size = LOOKS[kind].size
    for row, name in enumerate(names):
        cut = _fit(name, place.left - 12, size)
        label = _fit(name, math.inf, size, most=200) if cut != name else ""
        last = doubt and row == len(names) - 1
        y = place.y(row) + place.row_height / 2 + 0.35 * size
        yield Text("doubt-name" if last else kind, place.left - 8, y, cut, "end", label)


def _boxes(
    windows: Sequence[Window],
    shares: np.ndarray,
    classes: Sequence[str],
    columns: Sequence[range],
    row_of: dict[int, int],
    place: _Place,
) -> Iterator[Mark]:
    """The probabilities."""
    found = []  # (row, first column, last column, class, probability)
    merged = len(columns) < len(windows)
    least = 1 / STEPS if merged else LEAST_SHOWN
    indices = list(row_of)
    for number, column in enumerate(columns):
        peaks = shares[column.start : column.stop, indices].max(0)
        for i in np.flatnonzero(peaks >= least).tolist():
            found.append((row_of[indices[i]], number, number, indices[i], float(peaks[i])))
    if merged:
        found = _merge(found, windows, columns)
    if len(found) > MAX_BOXES:
        found = _most_probable(found)
    names = {index: _isolated(classes[index]) for index in {box[3] for box in found}}
    for row, first, last, index, probability in sorted(found):
        start = windows[columns[first].start].start_seconds
        stop = windows[columns[last].stop - 1].end_seconds
        width = place.scale * (stop - start)
        inset = 1.0 if width >= 8 else 0.0
        most = "at most " if merged else ""
        yield Rectangle(
            "cell",
            place.x(start) + inset,
            place.y(row) + 1,
            max(0.5, width - 2 * inset),
            place.row_height - 2,
            opacity=round(STEPS * probability) / STEPS if merged else probability,
            label=f"{_span(start, stop)}: {names[index]}, {most}{100 * probability:.0f} %",
        )


def _most_probable(
    boxes: Sequence[tuple[int, int, int, int, float]],
) -> list[tuple[int, int, int, int, float]]:
    """The `MAX_BOXES` most probable, but of every class one."""
    ranked = sorted(boxes, key=lambda box: -box[-1])
    best: dict[int, tuple[int, int, int, int, float]] = {}
    for box in ranked:
        best.setdefault(box[3], box)
    chosen = set(best.values())
    others = [box for box in ranked if box not in chosen]
    return [*best.values(), *others[: max(0, MAX_BOXES - len(best))]]


def _merge(
    boxes: Sequence[tuple[int, int, int, int, float]],
    windows: Sequence[Window],
    columns: Sequence[range],
) -> list[tuple[int, int, int, int, float]]:
    """Join neighbours of one class that look the same and touch."""
    joined: list[tuple[int, int, int, int, float]] = []
    for box in sorted(boxes, key=lambda box: (box[0], box[3], box[1])):
        if joined:
            row, first, last, index, probability = joined[-1]
            alike = round(STEPS * box[-1]) == round(STEPS * probability)
            if alike and (box[0], box[3], box[1]) == (row, index, last + 1):
                before = windows[columns[last].stop - 1]
                if windows[columns[box[1]].start].start_seconds <= before.end_seconds:
                    joined[-1] = (row, first, box[2], index, max(probability, box[-1]))
                    continue
        joined.append(box)
    return joined


def _doubts(
    windows: Sequence[Window],
    shares: np.ndarray,
    classes: Sequence[str],
    segments: Sequence[Segment],
    place: _Place,
) -> Iterator[Mark]:
    """A dashed box, in the last row, where no class is sure."""
    best, peaks = shares.argmax(1), shares.max(1)
    names: dict[int, str] = {}
    starts = np.array([window.start_seconds for window in windows])
    free = 0.0
    for segment in segments:
        start, stop = place.x(segment.start_seconds), place.x(segment.end_seconds)
        if segment.index is not None or stop - free < LEAST_SEEN:
            continue
        start = max(start, free)
        kind, inset = ("doubt", 1.0) if stop - start >= 8 else ("small-doubt", 0.0)
        free = stop
        first, last = np.searchsorted(starts, (segment.start_seconds, segment.end_seconds))
        top = int(first) + int(peaks[first : max(first + 1, last)].argmax())
        index = int(best[top])
        name = names[index] = names.get(index) or _isolated(classes[index])
        yield Rectangle(
            kind,
            start + inset,
            place.y(place.rows - 1) + 2,
            max(LEAST_SEEN, stop - start - 2 * inset),
            place.row_height - 4,
            label=f"{_span(segment.start_seconds, segment.end_seconds)}: uncertain; most probable: "
            f"{name}, {100 * peaks[top]:.0f} %",
        )


def _boundaries(segments: Sequence[Segment], place: _Place) -> Iterator[Mark]:
    if len(segments) * BOUNDARY_PIXELS > place.right - place.left:
        return
    edges = {s.start_seconds for s in segments} | {s.end_seconds for s in segments}
    before = -math.inf
    for x in sorted(map(place.x, edges)):
        if place.left + 1 < x < place.right - 1 and x - before >= 2:
            before = x
            yield Line("boundary", x, place.top - 5, x, place.bottom)


def _values(
    windows: Sequence[Window], shares: np.ndarray, row_of: dict[int, int], place: _Place
) -> Iterator[Mark]:
    """The numbers of the best classes, in the boxes that have room for them."""
    best, peaks = shares.argmax(1).tolist(), shares.max(1).tolist()
    for window, index, share in zip(windows, best, peaks, strict=True):
        room = place.scale * (window.end_seconds - window.start_seconds)
        if index in row_of and room >= VALUE_PIXELS:
            x = place.x((window.start_seconds + window.end_seconds) / 2)
            y = place.y(row_of[index]) + place.row_height / 2 + 4
            kind = "value-on-full" if share > FULL else "value"
            yield Text(kind, x, y, f"{100 * share:.0f} %", "middle")


def _axis(end: float, place: _Place) -> Iterator[Mark]:
    step = next((t for t in TICKS if t * place.scale >= TICK_PIXELS), None)
    if step is None:  # more than a month
        step = 86400 * math.ceil(TICK_PIXELS / place.scale / 86400)
    times = [number * step for number in range(math.floor(end / step + 1e-9) + 1)]
    for seconds in times:
        yield Line("tick", place.x(seconds), place.bottom, place.x(seconds), place.bottom + 5)
    for seconds in times:
        text = "0 s" if seconds == 0 and end < CLOCK_FROM else _clock(seconds, end)
        yield Text("time", place.x(seconds), place.bottom + 18, text, "middle")


def _notes(
    windows: Sequence[Window], columns: Sequence[range], gaps: Sequence[_Gap], end: float
) -> list[str]:
    """What the picture does not say by itself."""
    notes = []
    if len(columns) < len(windows):
        seconds = end / len(columns)
        wide = f"{seconds:.0f} s" if seconds < CLOCK_FROM else f"{seconds / 60:.0f} min"
        notes.append(f"a box is the highest probability within about {wide}")
    looked = sum(w.end_seconds - w.start_seconds for w in windows)
    if looked > 0.98 * end:  # a rest that is too short for a window
        return notes
    if not gaps:
        notes.append(f"{100 * looked / end:.0f} % of the time was looked at")
    elif max(box[2] for box, _ in gaps) < NOT_LOOKED_AT_PIXELS:
        notes.append(f"gray: {NOT_LOOKED_AT}")
    return notes


# --- words ----------------------------------------------------------------------------------------


def _clock(seconds: float, end: float) -> str:
    """A time of the axis: seconds, or of long videos m:ss or h:mm:ss."""
    if end < CLOCK_FROM:
        return f"{seconds:g}"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if end < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{hours}:{minutes:02d}:{whole % 60:02d}"


def _span(start: float, stop: float) -> str:
    """A stretch of time, exactly: in seconds, later in a long video as its axis has it."""
    if stop < CLOCK_FROM:
        return f"{start:.2f}\N{EN DASH}{stop:.2f} s"
    hundredths = [round(100 * t) for t in (start, stop)]
    return "\N{EN DASH}".join(f"{_clock(n // 100, stop)}.{n % 100:02d}" for n in hundredths)


def _visible(text: str) -> str:
    """Other people's text in one line, with what would steer it escaped."""
    return shown(text).replace("\n", "\\n")


def _isolated(name: str) -> str:
    """A name within a sentence, which a script from right to left does not turn around."""
    text = _fit(_visible(name), math.inf, 1.0)
    return text if text.isascii() else f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"


def _text_width(text: str, size: float) -> float:
    """About the width of a text in pixels, without asking a font; more rather than less."""
    return size * sum(map(_em, text))


def _em(character: str) -> float:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if ord(character) > 0x590:  # scripts whose letters may be wider than ours
        return 0.8
    return 0.74 if character.isupper() or character in "mwMW@%" else 0.55


def _fit(text: str, width: float, size: float, *, most: int = MAX_NAME) -> str:
    """The beginning of a text that fits into a width, with an ellipsis for the rest.

    Marks over one letter are bounded too: a name could fill the picture with them.
    """
    kept: list[str] = []
    used, marks = 0.0, 0
    ellipsis = "\N{HORIZONTAL ELLIPSIS}"
    for character in text:
        em = _em(character)
        marks = marks + 1 if em == 0 else 0
        if marks > 3:
            continue
        kept.append(character)
        used += size * em
        if used > width or len(kept) > most:
            while kept and (used + size > width or len(kept) >= most):
                used -= size * _em(kept.pop())
            return "".join(kept).rstrip() + ellipsis
    return "".join(kept)
