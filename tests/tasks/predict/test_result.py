"""What a prediction is in a notebook, as a table of pandas, and as a picture."""

import builtins
import re
from dataclasses import replace

import numpy as np
import pytest
from support.pages import Reader

from i3d.errors import UsageError
from i3d.metrics import probabilities
from i3d.report.drawing import Rectangle
from i3d.tasks.predict.result import MAX_HTML_ROWS, Prediction, Window, top_classes
from i3d.tasks.predict.segments import find_segments

CLASSES = ("jumping", "<script>alert(1)</script>", "a\x1b[2J\u202eb", *map(str, range(9)))


def predicted(*best, every=2.0, classes=CLASSES, **fields):
    """A prediction of windows whose best classes are given; None is uncertain."""
    windows = []
    for i, index in enumerate(best):
        logits = np.zeros(len(classes), np.float32)
        if index is not None:
            logits[index] = 5 + i % 3
        frame = np.full((32, 48, 3), 90, np.uint8)
        windows.append(Window(i * every, (i + 1) * every, logits, frame))
    seconds = len(best) * every
    return Prediction(
        video="https://user:secret@host/<b>a</b>.mp4",
        frames=round(25 * seconds),
        seconds=seconds,
        duration=seconds,
        checkpoints=("rgb",),
        predictions=(),
        segments=find_segments(windows, classes),
        windows=tuple(windows),
        classes=classes,
        every_seconds=every,
        **fields,
    )


def one_clip():
    along = predicted(1, every=10.0)
    scores = top_classes(along.windows[0].logits, CLASSES, top_k=5)
    return replace(along, every_seconds=None, predictions=scores)


def parse(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root], "an element is not closed"
    return reader.root


def test_a_notebook_shows_segments_and_timeline():
    prediction = predicted(0, 0, 1, None, 2, damage="two frames\x07")
    page = parse(prediction._repr_html_())
    rows = page.one("tbody").all("tr")
    for row, segment in zip(rows, prediction.segments, strict=True):
        texts = [c.text for c in row.all("td")]
        assert texts[1] == f"{segment.start_seconds:.1f}–{segment.end_seconds:.1f}"
        if segment.probability is None:
            assert texts[2:] == ["uncertain", "", ""]
        else:
            assert texts[3] == f"{100 * segment.probability:.1f} %"
            filled = list(row.all("rect"))[1].attributes["width"]
            assert float(filled) == pytest.approx(120 * segment.probability, abs=0.05)
        assert row.one("img").attributes["src"].startswith("data:image/jpeg;base64,")
    assert len(list(page.one("svg", class_="i3d-timeline").all("image"))) == 5
    assert "two frames\\x07" in page.text


@pytest.mark.parametrize("prediction", [predicted(0, 1, 2), one_clip()])
def test_a_notebook_runs_and_loads_nothing(prediction):
    html = prediction._repr_html_()
    page = parse(html)
    assert not {e.tag for e in page.all()} & {"script", "style", "link", "b-a", "iframe"}
    for element in page.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith("data:image/jpeg;base64,")
    assert "<script" not in html and "\x1b" not in html and "\u202e" not in html
    assert "secret" not in html and "<b>a" not in html
    assert CLASSES[1] in page.text


def test_a_notebook_shows_the_classes_of_one_clip():
    prediction = one_clip()
    page = parse(prediction._repr_html_())
    assert not list(page.all("svg", class_="i3d-timeline"))
    rows = page.rows()
    names = [CLASSES[1], "jumping", "a\\x1b[2J\\u202eb", "0", "1"]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == [
        f"{100 * s.probability:.2f} %" for s in prediction.predictions
    ]


def test_a_notebook_stays_small():
    random = np.random.default_rng(0)
    classes = tuple(f"class {i} " + "x" * 1000 for i in range(400))
    prediction = predicted(*random.integers(400, size=2800).tolist(), every=2.56, classes=classes)
    html = prediction._repr_html_()
    assert len(html) < 1_500_000
    page = parse(html)
    assert len(page.rows()) == MAX_HTML_ROWS
    assert f"and {len(prediction.segments) - MAX_HTML_ROWS} more segments" in page.text


def test_the_picture_is_of_the_windows():
    prediction = predicted(0, 1, None, 2)
    drawing = prediction.draw_timeline()
    cells = [m for m in drawing.marks if isinstance(m, Rectangle) and m.kind == "cell"]
    for window in prediction.windows:
        best = probabilities(window.logits).max()
        x = drawing.data["left"] + drawing.data["scale"] * window.start_seconds
        assert any(abs(c.x - x) < 1.1 and c.opacity == pytest.approx(best) for c in cells)


@pytest.mark.parametrize(("damage", "gaps"), [(None, 1), ("cut short", 0)])
def test_what_is_behind_the_last_window_is_a_gap(damage, gaps):
    """Of a damaged video nobody knows how long it was."""
    prediction = replace(predicted(0, 1, damage=damage), duration=9.0)
    drawing = prediction.draw_timeline()
    assert sum(m.kind == "gap" for m in drawing.marks) == gaps


def test_a_table_of_pandas_has_a_row_a_segment():
    pandas = pytest.importorskip("pandas")
    prediction = predicted(0, 0, None, 2)
    table = prediction.to_pandas()
    columns = ["video", "start_seconds", "end_seconds", "class", "index", "probability"]
    assert list(table.columns) == columns
    assert table["start_seconds"].tolist() == [0, 4, 6]
    assert table["end_seconds"].tolist() == [4, 6, 8]
    assert table["class"].tolist()[::2] == ["jumping", CLASSES[2]]
    assert table["index"].tolist()[::2] == [0, 2] and str(table["index"].dtype) == "Int64"
    assert table.iloc[1][["class", "index", "probability"]].isna().all()
    assert table.loc[1, "probability"] is pandas.NA
    shares = [s.probability for s in prediction.segments if s.probability is not None]
    assert table["probability"].dropna().tolist() == pytest.approx(shares)
    assert set(table["video"]) == {prediction.video}
    assert predicted(None).to_pandas().shape == (1, 6)


def test_pandas_is_named_where_it_is_missing(monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "pandas":
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=re.escape("to_pandas needs pandas: pip install pandas")):
        predicted(0).to_pandas()
