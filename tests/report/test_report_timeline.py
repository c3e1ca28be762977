"""Where the boxes of a timeline are, read back from its SVG and compared with the windows."""

import re
from dataclasses import dataclass
from functools import cached_property
from xml.etree import ElementTree

import numpy as np
import pytest

from i3d.report.drawing import Image, Rectangle, Text, svg_file, svg_text
from i3d.report.timeline import FULL, MAX_BOXES, MAX_ROWS, Truth, _span, lay_out_timeline

SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class Window:
    start_seconds: float
    end_seconds: float
    frame: np.ndarray


@dataclass
class Segment:
    start_seconds: float
    end_seconds: float
    index: int | None
    probability: float | None


def shot(start, end, *, size=(72, 128)):
    return Window(start, end, np.full((*size, 3), 120, np.uint8))


def merge(windows, shares):
    """Segments, by a rule of this test's own: neighbours of one class over a half."""
    segments = []
    for window, row in zip(windows, shares, strict=True):
        index = int(row.argmax()) if row.max() >= 0.5 else None
        share = None if index is None else float(row.max())
        last = segments[-1] if segments else None
        if last and last.index == index and last.end_seconds >= window.start_seconds:
            last.end_seconds = window.end_seconds
        else:
            segments.append(Segment(window.start_seconds, window.end_seconds, index, share))
    return segments


def rows_of(*best, classes=10):
    """Probabilities (windows, classes) whose best are given as (class, share)."""
    shares = np.zeros((len(best), classes))
    for row, (index, share) in zip(shares, best, strict=True):
        row[:] = (1 - share) / (classes - 1)
        row[index] = share
    return shares


def along(shares, *, every=2.0, length=None, names=None, **options):
    """(windows, segments, drawing) of a video with those probabilities."""
    length = every if length is None else length
    windows = [shot(i * every, i * every + length) for i in range(len(shares))]
    segments = merge(windows, shares)
    names = [f"class {i}" for i in range(shares.shape[1])] if names is None else names
    return windows, segments, lay_out_timeline(windows, shares, names, segments, **options)


class Picture:
    """An SVG read by another parser."""

    def __init__(self, drawing, make=svg_text):
        self.root = ElementTree.fromstring(make(drawing))
        self.left, self.scale = (float(self.root.get(f"data-{n}")) for n in ("left", "scale"))

    def all(self, kind):
        """Elements of a kind, with their attributes as numbers where they are."""
        return [e for g in self.root.iter(f"{SVG}g") if g.get("class") == f"i3d-{kind}" for e in g]

    def text(self, element):
        return "".join(t for t in (element.text, *(e.tail for e in element)) if t)

    @cached_property
    def names(self):
        """name -> middle of its row"""
        kinds = ("name", "small-name", "doubt-name")
        found = [e for kind in kinds for e in self.all(kind)]
        return {self.text(e): float(e.get("y")) - 4 for e in found}

    def span(self, element):
        start = (float(element.get("x")) - self.left) / self.scale
        return start, start + float(element.get("width")) / self.scale

    def row(self, element):
        middle = float(element.get("y")) + float(element.get("height")) / 2
        return min(self.names, key=lambda name: abs(self.names[name] - middle))


SHARES = rows_of((7, 0.9), (7, 0.8), (2, 0.3), (4, 0.62), (7, 0.97))


def test_a_time_is_rounded_as_a_whole():
    assert _span(120.0, 179.996) == "2:00.00\N{EN DASH}3:00.00"
    assert _span(1.004, 2.996) == "1.00\N{EN DASH}3.00 s"


def test_a_box_spans_its_window_in_the_row_of_its_class():
    windows, _, drawing = along(SHARES)
    picture = Picture(drawing)
    boxes = {(picture.row(e), round(picture.span(e)[0] / 2)): e for e in picture.all("cell")}
    for number, (window, row) in enumerate(zip(windows, SHARES, strict=True)):
        element = boxes[f"class {row.argmax()}", number]
        start, end = picture.span(element)
        pixel = 1 / picture.scale
        assert start == pytest.approx(window.start_seconds, abs=1.1 * pixel)
        assert end == pytest.approx(window.end_seconds, abs=1.1 * pixel)
        assert float(element.get("fill-opacity")) == pytest.approx(row.max(), abs=5e-4)
        label = element.find(f"{SVG}title").text
        assert label == (
            f"{window.start_seconds:.2f}–{window.end_seconds:.2f} s: class {row.argmax()}, "
            f"{100 * row.max():.0f} %"
        )
    for name, number in boxes:  # and every other one is of the probability that it shows
        share = SHARES[number, int(name.split()[-1])]
        assert float(boxes[name, number].get("fill-opacity")) == pytest.approx(share, abs=5e-4)


def test_winners_have_a_row_in_the_order_of_their_first_time():
    _, _, drawing = along(SHARES)
    names = list(Picture(drawing).names)
    assert [n for n in names if n in ("class 7", "class 4")] == ["class 7", "class 4"]
    assert names[-1] == "uncertain"
    assert len(names) == len(set(names)) <= 2 + 3 + 1


def test_what_is_uncertain_has_a_box_of_its_own():
    _, _, drawing = along(SHARES)
    picture = Picture(drawing)
    (box,) = picture.all("doubt")
    assert picture.row(box) == "uncertain"
    assert picture.span(box) == pytest.approx((4, 6), abs=1.1 / picture.scale)
    assert "uncertain; most probable: class 2, 30 %" in box.find(f"{SVG}title").text
    sure = Picture(along(rows_of((1, 0.9), (3, 0.8)))[2])
    assert "uncertain" not in sure.names and not sure.all("doubt")


def test_gaps_stay_empty_and_are_marked():
    shares = rows_of((1, 0.9), (1, 0.9), (3, 0.8))
    windows, _, drawing = along(shares, every=60, length=10, end_seconds=175)
    picture = Picture(drawing)
    gaps = [picture.span(e) for e in picture.all("gap")]
    assert gaps == [pytest.approx(g, abs=0.01) for g in ((10, 60), (70, 120), (130, 175))]
    for box in picture.all("cell"):
        start, end = picture.span(box)
        assert any(w.start_seconds <= start and end <= w.end_seconds for w in windows)
    assert [picture.text(e) for e in picture.all("gap-name")] == ["not looked at"] * 3
    assert not Picture(along(shares)[2]).all("gap")


@pytest.mark.parametrize("count", [1, 4, 20, 80, 300, 2800])
@pytest.mark.parametrize("size", [(72, 128), (128, 72), (1, 900), (900, 1)])
def test_thumbnails_are_centred_over_their_times(count, size):
    windows = [shot(2.5 * i, 2.5 * i + 2.5, size=size) for i in range(count)]
    shares = rows_of(*[(1, 0.9)] * count)
    drawing = lay_out_timeline(windows, shares, ["a"] * 10, merge(windows, shares))
    picture = Picture(drawing)
    images = picture.all("thumbnail")
    assert 1 <= len(images) <= 30
    before = picture.left
    for image in images:
        start, end = (float(t) for t in re.findall(r"[\d.]+(?=\N{EN DASH}| s$)", _seconds(image)))
        x, width = float(image.get("x")), float(image.get("width"))
        assert (x + width / 2 - picture.left) / picture.scale == pytest.approx(
            (start + end) / 2, abs=0.02 / picture.scale
        )
        assert x >= before - 0.02
        before = x + width
    assert before <= drawing.width


def _seconds(image):
    """The label of a thumbnail, in seconds even where it has h:mm:ss."""
    label = image.find(f"{SVG}title").text
    if label.endswith(" s"):
        return label

    def plain(text):
        seconds = 0.0
        for part in text.split(":"):
            seconds = 60 * seconds + float(part)
        return f"{seconds:.2f}"

    return "\N{EN DASH}".join(map(plain, label.split("\N{EN DASH}"))) + " s"


def test_boundaries_of_segments_are_lines():
    _, segments, drawing = along(SHARES)
    picture = Picture(drawing)
    lines = [(float(e.get("x1")) - picture.left) / picture.scale for e in picture.all("boundary")]
    assert lines == pytest.approx([s.start_seconds for s in segments[1:]], abs=0.01)


def test_numbers_are_in_the_boxes_that_have_room():
    picture = Picture(along(SHARES)[2])
    numbers = picture.all("value") + picture.all("value-on-full")
    assert sorted(picture.text(e) for e in numbers) == sorted(
        f"{100 * row.max():.0f} %" for row in SHARES
    )
    full = {picture.text(e) for e in picture.all("value-on-full")}
    assert full == {f"{100 * row.max():.0f} %" for row in SHARES if row.max() > FULL}
    narrow = Picture(along(rows_of(*[(1, 0.9)] * 80))[2])
    assert not narrow.all("value") + narrow.all("value-on-full")


@pytest.mark.parametrize(
    ("seconds", "first", "some"),
    [(10, "0 s", "5"), (100, "0 s", "50"), (600, "0:00", "5:00"), (7200, "0:00:00", "1:00:00")],
)
def test_the_axis_is_in_seconds_or_in_minutes(seconds, first, some):
    _, _, drawing = along(rows_of((1, 0.9), (2, 0.9)), every=seconds / 2)
    picture = Picture(drawing)
    ticks = {picture.text(e): float(e.get("x")) for e in picture.all("time")}
    assert next(iter(ticks)) == first and some in ticks
    assert 3 <= len(ticks) <= 14
    parts = [float(p) for p in some.split(":")]
    wanted = sum(p * 60**i for i, p in enumerate(reversed(parts)))
    assert (ticks[some] - picture.left) / picture.scale == pytest.approx(wanted, rel=1e-3)


def test_truth_is_outlined_and_has_the_first_rows():
    truth = [Truth(9, 0, 4), Truth(7, 4, 10)]
    picture = Picture(along(SHARES, truth=truth)[2])
    assert list(picture.names)[:2] == ["class 9", "class 7"]
    for part, box in zip(truth, picture.all("truth"), strict=True):
        assert picture.row(box) == f"class {part.index}"
        assert picture.span(box) == pytest.approx((part.start_seconds, part.end_seconds), abs=0.01)


def long_video(count, *, classes=400, held=1, seed=0):
    """Random answers, each for `held` windows."""
    random = np.random.default_rng(seed)
    best = np.repeat(random.integers(classes, size=count // held + 1), held)[:count]
    return rows_of(*((int(i), random.uniform(0.3, 1)) for i in best), classes=classes)


@pytest.mark.parametrize("held", [1, 40])
def test_a_video_of_two_hours_stays_small(held):
    shares = long_video(2800, held=held)
    _, segments, drawing = along(shares, every=2.56, title="two hours", caption="2800 windows")
    assert len(svg_file(drawing)) < 1_000_000
    assert drawing.height < 2500
    assert sum(isinstance(m, Rectangle) and m.kind == "cell" for m in drawing.marks) <= MAX_BOXES
    picture = Picture(drawing)
    winners = {f"class {s.index}" for s in segments if s.index is not None}
    rows = set(picture.names)
    if len(winners) <= MAX_ROWS:
        assert winners <= rows
    else:
        assert len(rows) <= MAX_ROWS + 1
        assert f"{len(winners - rows)} other classes" in rows
    filled = {picture.row(e) for e in picture.all("cell")}
    assert (winners & rows) <= filled
    for box in picture.all("cell"):
        assert float(box.get("width")) >= 0.5


def test_a_box_of_several_windows_has_the_highest_probability():
    shares = np.tile(rows_of((1, 0.1)), (2000, 1))
    shares[777] = rows_of((5, 0.99))
    picture = Picture(along(shares)[2])
    (box,) = (e for e in picture.all("cell") if picture.row(e) == "class 5"
              and float(e.get("fill-opacity")) > 0.9)  # fmt: skip
    start, end = picture.span(box)
    assert start <= 2 * 777 + 0.1 and end >= 2 * 778 - 0.1 and end - start < 20
    assert "class 5, at most 99 %" in box.find(f"{SVG}title").text


HOSTILE = [
    "<script>alert(1)</script>",
    "a & b]]>\"'",
    "very long " * 1000,
    "\x1b[2Jred\nsecond line",
    "\u202eright to left",
    "zalgo" + "\u0301" * 5000,
    "not\ufffexml",
    "half \ud800",
    "你好世界跳舞" * 30,
    "مرحبا بالعالم",
]


def test_names_of_others_are_text_in_bounds():
    shares = rows_of(*((i, 0.9) for i in range(len(HOSTILE))), classes=len(HOSTILE))
    _, _, drawing = along(shares, names=HOSTILE, title="</svg>\x1b" + "t" * 3000, caption="2 s")
    for make in (svg_text, svg_file):
        text = make(drawing)
        assert len(text.encode()) < 100_000
        assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
        picture = Picture(drawing, make)
        names = list(picture.names)
        assert names[0] == HOSTILE[0]
        assert names[3] == "\\x1b[2Jred\\nsecond line"
        assert names[6] == "not\N{REPLACEMENT CHARACTER}xml"
        assert names[9] == HOSTILE[9]
        assert all(len(name) <= 61 for name in names)
        assert len(names[2]) < 40 and names[2].endswith("…")
        labels = [t.text for t in picture.root.iter(f"{SVG}title")]
        assert max(map(len, labels)) < 250
        assert any("\u2068مرحبا بالعالم\u2069, 90 %" in label for label in labels)


def test_nothing_of_the_picture_is_outside_of_it():
    for shares in (SHARES, long_video(2800), rows_of((1, 0.2))):
        drawing = along(shares, title="t", caption="c", every=2.56)[2]
        for mark in drawing.marks:
            if isinstance(mark, Rectangle | Image):
                assert mark.x >= 0 and mark.x + mark.width <= drawing.width
                assert mark.y >= 0 and mark.y + mark.height <= drawing.height
            elif isinstance(mark, Text):
                assert 0 <= mark.x <= drawing.width and 0 <= mark.y <= drawing.height


@pytest.mark.parametrize("end", [float("inf"), float("nan"), 1e9, -1.0])
def test_a_header_that_lies_about_the_end_does_no_harm(end):
    drawing = along(SHARES, end_seconds=end)[2]
    assert len(svg_text(drawing)) < 100_000
    assert sum(isinstance(m, Text) and m.kind == "time" for m in drawing.marks) <= 14
