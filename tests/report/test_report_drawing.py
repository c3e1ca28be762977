"""Marks as SVG and as matplotlib's files: both draw the same ones where they are."""

import sys
import warnings
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from i3d.errors import UsageError
from i3d.report.drawing import (
    LOOKS,
    Drawing,
    Image,
    Line,
    Rectangle,
    Text,
    svg_file,
    svg_text,
    write_drawing,
)

RED = np.full((20, 40, 3), (200, 30, 30), np.uint8)
DRAWING = Drawing(
    width=300,
    height=200,
    title='a "drawing"',
    marks=(
        Rectangle("cell", 20, 30, 100, 40, opacity=0.5, label="half <full>"),
        Rectangle("cell", 160, 30, 100, 40),
        Image("thumbnail", 20, 100, 80, 40, pixels=RED, label="red"),
        Line("truth", 150, 90, 290, 90),
        Text("title", 150, 180, "$x$ & \\frac", "middle"),
    ),
    data={"left": 20.5},
)


def read_png(path):
    """Pixels at the drawing's own size, RGB."""
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return cv2.resize(picture, (300, 200), interpolation=cv2.INTER_AREA)


def test_svg_has_every_mark_where_it_is():
    root = ElementTree.fromstring(svg_text(DRAWING))
    ns = "{http://www.w3.org/2000/svg}"
    assert root.get("viewBox") == "0 0 300 200" and root.get("data-left") == "20.5"
    assert root.get("aria-label") == 'a "drawing"'
    half, full = root.iter(f"{ns}rect")
    assert [half.get(k) for k in ("x", "y", "width", "height")] == ["20", "30", "100", "40"]
    assert half.get("fill-opacity") == "0.500" and full.get("fill-opacity") is None
    assert half.find(f"{ns}title").text == "half <full>"
    (image,) = root.iter(f"{ns}image")
    assert image.get("href").startswith("data:image/jpeg;base64,")
    (text,) = root.iter(f"{ns}text")
    assert (text.text, text.get("text-anchor")) == ("$x$ & \\frac", "middle")


def test_svg_in_a_page_needs_no_style_and_has_the_pages_color():
    text = svg_text(DRAWING)
    assert "<style" not in text and "style=" not in text
    assert "currentColor" in text and "prefers-color-scheme" not in text


def test_an_svg_file_is_for_light_and_dark(tmp_path):
    write_drawing(DRAWING, tmp_path / "d.svg")
    text = (tmp_path / "d.svg").read_text(encoding="utf-8")
    assert text == svg_file(DRAWING)
    root = ElementTree.fromstring(text)
    assert (root.get("width"), root.get("height"), root.get("color")) == ("300", "200", "#1b1e23")
    assert "prefers-color-scheme: dark" in text


def test_svg_needs_no_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    write_drawing(DRAWING, tmp_path / "d.svg")
    with pytest.raises(UsageError, match="a plot needs matplotlib: pip install matplotlib"):
        write_drawing(DRAWING, tmp_path / "d.png")
    assert [p.name for p in tmp_path.iterdir()] == ["d.svg"]


def test_matplotlib_draws_every_mark_where_svg_has_it(tmp_path):
    pytest.importorskip("matplotlib")
    write_drawing(DRAWING, tmp_path / "d.png")
    pixels = read_png(tmp_path / "d.png").astype(int)
    accent = np.array((0x2B, 0x6C, 0xC4))
    paper = np.array((255, 255, 255))
    for (x, y), color in {
        (70, 50): (accent + paper) / 2,
        (210, 50): accent,
        (60, 120): (200, 30, 30),
        (140, 50): paper,
        (10, 10): paper,
    }.items():
        assert pixels[y, x] == pytest.approx(color, abs=3), (x, y)
    for x, y in ((22, 50), (118, 50), (70, 32), (70, 68)):  # up to its edges
        assert abs(pixels[y, x] - paper).max() > 40
    for x, y in ((17, 50), (123, 50), (70, 27), (70, 73)):
        assert pixels[y, x] == pytest.approx(paper, abs=3)
    assert pixels[88:93, 220].min() < 120  # the line
    inked = np.flatnonzero(pixels[165:185].min((0, 2)) < 120)  # the text's columns
    assert inked.size and (inked.min() + inked.max()) / 2 == pytest.approx(150, abs=3)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_suffix_is_the_format(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    write_drawing(DRAWING, tmp_path / f"d.{suffix}")
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    data = (tmp_path / f"d.{suffix}").read_bytes()
    assert data.startswith(start) and len(data) > 1000


def test_characters_that_no_font_has_are_said_once(tmp_path):
    pytest.importorskip("matplotlib")
    lone = Drawing(100, 50, "t", (Text("name", 10, 20, "\U00014400 \U00014401 \ufffe"),))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_drawing(lone, tmp_path / "d.png")
    (warning,) = caught
    assert "no installed font has \U00014400\U00014401" in str(warning.message)


def test_every_color_of_a_look_is_known():
    for kind in LOOKS:
        marks = (Rectangle(kind, 1, 1, 5, 5), Text(kind, 1, 1, "a"), Line(kind, 1, 1, 2, 2))
        ElementTree.fromstring(svg_text(Drawing(10, 10, "t", marks)))
