"""Pictures of plain marks, and what draws them: SVG text, or matplotlib for files of other formats.

Whoever lays a picture out decides everything in units of a pixel, x to the right and y down, and
gives marks in the order in which they cover each other. What draws them decides nothing. Each mark
has a kind, whose look is in `LOOKS`.

SVG takes the text colour of the page around it, so that it fits a light and a dark one alike, and
has the looks as attributes: a page's policy may forbid styles. A file of its own brings both
colours with it.
"""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePath
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from i3d import files
from i3d.report.page import embed_picture
from i3d.report.plot import draw_plot

INK = "#1b1e23"  # of files; in a page the text's colour
PAPER = "#ffffff"
DARK_INK, DARK_PAPER = "#e4e6ea", "#15171b"
ACCENT = "#2b6cc4"  # seen on white and on black, and white is read on it
JPEG_QUALITY = 85
PIXELS_PER_INCH = 96  # CSS's
MAX_FONTS = 8  # that are asked for what the usual one lacks


@dataclass(frozen=True)
class Rectangle:
    """A box.

    Attributes:
        kind: key of `LOOKS`.
        x: of the left side.
        y: of the upper side.
        width: pixels.
        height: pixels.
        opacity: of the fill, in 0..1; None: the kind's.
        label: what a pointer over it tells; "" for nothing.
    """

    kind: str
    x: float
    y: float
    width: float
    height: float
    opacity: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A straight line between two points; ``kind`` is a key of `LOOKS`."""

    kind: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Text:
    """A line of text, plain: nothing in it is markup.

    Attributes:
        kind: key of `LOOKS`.
        x: of its start, middle or end, as ``anchor`` says.
        y: of the base line.
        text: as it is shown.
        anchor: "start", "middle" or "end".
        label: what a pointer over it tells; "" for nothing.
    """

    kind: str
    x: float
    y: float
    text: str
    anchor: str = "start"
    label: str = ""


@dataclass(frozen=True)
class Image:
    """A picture, uint8 (H, W, 3) RGB, scaled to a box."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    pixels: np.ndarray = field(repr=False)
    label: str = ""


Mark = Rectangle | Line | Text | Image


@dataclass(frozen=True)
class Drawing:
    """A picture.

    Attributes:
        width: pixels.
        height: pixels.
        title: what it is, for those who do not see it.
        marks: from the lowest to the uppermost.
        data: numbers for a page's script, by the names that HTML gives them: ``data-NAME``.
    """

    width: float
    height: float
    title: str
    marks: tuple[Mark, ...] = field(repr=False)
    data: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """How a kind of mark is drawn.

    Attributes:
        fill: "ink", "accent", "paper" or None.
        fill_opacity: in 0..1.
        stroke: as ``fill``, of the outline.
        stroke_opacity: in 0..1.
        stroke_width: pixels.
        dashed: whether the outline is.
        size: pixels of a text.
        italic: whether a text is.
        bold: whether a text is.
    """

    fill: str | None = None
    fill_opacity: float = 1.0
    stroke: str | None = None
    stroke_opacity: float = 1.0
    stroke_width: float = 1.0
    dashed: bool = False
    size: float = 12.0
    italic: bool = False
    bold: bool = False


LOOKS = {
    "paper": Look(fill="paper"),  # of files alone
    "title": Look(fill="ink", size=14, bold=True),
    "caption": Look(fill="ink", fill_opacity=0.7),
    "name": Look(fill="ink"),
    "small-name": Look(fill="ink", size=10.5),
    "doubt-name": Look(fill="ink", fill_opacity=0.7, italic=True),
    "row": Look(stroke="ink", stroke_opacity=0.16),
    "gap": Look(fill="ink", fill_opacity=0.1),
    "gap-name": Look(fill="ink", fill_opacity=0.7, size=11, italic=True),
    "thumbnail": Look(),
    "when": Look(fill="ink", fill_opacity=0.6),  # below a thumbnail, the time that it is of
    "cell": Look(fill="accent"),
    "doubt": Look(fill="ink", fill_opacity=0.06, stroke="ink", stroke_opacity=0.6, dashed=True),
    "small-doubt": Look(fill="ink", fill_opacity=0.4),  # where dashes are no longer seen
    "boundary": Look(stroke="ink", stroke_opacity=0.45, dashed=True),
    "value": Look(fill="ink", size=11),
    "value-on-full": Look(fill="paper", size=11),
    "truth": Look(stroke="ink", stroke_width=1.5),
    "tick": Look(stroke="ink", stroke_opacity=0.45),
    "time": Look(fill="ink", fill_opacity=0.7),
}


def write_drawing(drawing: Drawing, output: files.Location) -> None:
    """Write a drawing to a file (``.svg``, and with matplotlib ``.png``, ``.pdf``), atomically.

    SVG is written as text, without matplotlib: its words can be found and its labels be read.

    Args:
        drawing: marks of known kinds.
        output: path or URL; its suffix is the format.

    Raises:
        UsageError: matplotlib is not installed, or cannot write that suffix.

    Warns:
        UserWarning: no installed font has some of the characters, which matplotlib draws as boxes.
    """
    if PurePath(os.fspath(output)).suffix == ".svg":
        files.write(output, svg_file(drawing).encode())
    else:
        _write_figure(drawing, output)


# --- SVG ------------------------------------------------------------------------------------------

_COLORS = {"ink": "currentColor", "accent": ACCENT, "paper": PAPER}
# What XML does not take even escaped.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg_text(drawing: Drawing) -> str:
    """The drawing as an ``<svg>`` element for a page, whose text colour it takes."""
    return "".join(_svg(drawing, drawing.marks))


def svg_file(drawing: Drawing) -> str:
    """The drawing as an SVG file, with colours for a light and a dark screen."""
    paper = Rectangle("paper", 0, 0, drawing.width, drawing.height)
    style = (
        f"<style>@media screen and (prefers-color-scheme: dark) {{ svg {{ color: {DARK_INK} }} "
        f".i3d-paper {{ fill: {DARK_PAPER} }} }}</style>\n"
    )
    size = {"width": _number(drawing.width), "height": _number(drawing.height), "color": INK}
    start = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return start + "".join(_svg(drawing, (paper, *drawing.marks), size, style))


def _svg(
    drawing: Drawing, marks: Iterable[Mark], more: Mapping[str, str] = {}, head: str = ""
) -> Iterator[str]:
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "i3d-timeline",
        "viewBox": f"0 0 {_number(drawing.width)} {_number(drawing.height)}",
        **more,
        **{f"data-{name}": repr(float(value)) for name, value in drawing.data.items()},
        "font-family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
        "role": "img",
        "aria-label": drawing.title,
    }
    yield f"<svg {_attributes(attributes)}>\n{head}"
    for kind, group in groupby(marks, key=lambda mark: mark.kind):
        yield f"<g {_attributes(_svg_look(kind))}>\n"
        yield from map(_svg_mark, group)
        yield "</g>\n"
    yield "</svg>\n"


def _svg_look(kind: str) -> dict[str, str]:
    look = LOOKS[kind]
    found = {"class": f"i3d-{kind}", "fill": "none" if look.fill is None else _COLORS[look.fill]}
    if look.fill_opacity != 1:
        found["fill-opacity"] = _number(look.fill_opacity)
    if look.stroke is not None:
        found |= {"stroke": _COLORS[look.stroke], "stroke-width": _number(look.stroke_width)}
        found["stroke-opacity"] = _number(look.stroke_opacity)
    if look.dashed:
        found["stroke-dasharray"] = "3 3"
    if look.stroke is None and look.fill is not None:
        found["font-size"] = _number(look.size)
    if look.italic:
        found["font-style"] = "italic"
    if look.bold:
        found["font-weight"] = "600"
    return found


def _svg_mark(mark: Mark) -> str:
    if isinstance(mark, Line):
        ends = {"x1": mark.x1, "y1": mark.y1, "x2": mark.x2, "y2": mark.y2}
        return f"<line {_attributes({k: _number(v) for k, v in ends.items()})}/>\n"
    title = f"<title>{_escape(mark.label)}</title>" if mark.label else ""
    place = {"x": _number(mark.x), "y": _number(mark.y)}
    if isinstance(mark, Text):
        if mark.anchor != "start":
            place["text-anchor"] = mark.anchor
        return f"<text {_attributes(place)}>{title}{_escape(mark.text)}</text>\n"
    place |= {"width": _number(mark.width), "height": _number(mark.height)}
    if isinstance(mark, Rectangle):
        if mark.opacity is not None:
            place["fill-opacity"] = f"{mark.opacity:.3f}"
        tag = "rect"
    else:
        place["preserveAspectRatio"] = "none"
        place["href"] = embed_picture(mark.pixels, quality=JPEG_QUALITY).uri
        tag = "image"
    return f"<{tag} {_attributes(place)}>{title}</{tag}>\n"


def _attributes(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={quoteattr(_legal(value))}" for name, value in values.items())


def _escape(text: str) -> str:
    return escape(_legal(text))


def _legal(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


# --- matplotlib -----------------------------------------------------------------------------------


def _write_figure(drawing: Drawing, output: files.Location) -> None:
    inches = (drawing.width / PIXELS_PER_INCH, drawing.height / PIXELS_PER_INCH)
    with warnings.catch_warnings(), draw_plot(output, inches=inches) as figure:
        # matplotlib's, one for every character: `_find_fonts` says it once
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.set_layout_engine("none")  # every place is decided
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        fonts = _find_fonts(_legal(mark.text) for mark in drawing.marks if isinstance(mark, Text))
        for order, mark in enumerate(drawing.marks):
            _add_mark(axes, mark, order, fonts)
        axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0), aspect="auto")


def _add_mark(axes: Any, mark: Mark, order: int, fonts: list[str]) -> None:
    from matplotlib.patches import Rectangle as Patch

    look = LOOKS[mark.kind]
    points = 72 / PIXELS_PER_INCH
    lines = {"linewidth": look.stroke_width * points, "zorder": order}
    if isinstance(mark, Rectangle):
        opacity = look.fill_opacity if mark.opacity is None else mark.opacity
        patch = Patch(
            (mark.x, mark.y),
            mark.width,
            mark.height,
            facecolor=_paint(look.fill, opacity),
            edgecolor=_paint(look.stroke, look.stroke_opacity),
            linestyle=(0, (3, 3)) if look.dashed else "-",
            **(lines if look.stroke else {"linewidth": 0, "zorder": order}),
        )
        axes.add_patch(patch)
    elif isinstance(mark, Line):
        axes.plot(
            (mark.x1, mark.x2),
            (mark.y1, mark.y2),
            color=_paint(look.stroke, look.stroke_opacity),
            linestyle=(0, (3, 3)) if look.dashed else "-",
            **lines,
        )
    elif isinstance(mark, Text):
        axes.text(
            mark.x,
            mark.y,
            _legal(mark.text),
            color=_paint(look.fill, look.fill_opacity),
            fontsize=look.size * points,
            fontfamily=fonts,
            fontstyle="italic" if look.italic else "normal",
            fontweight="bold" if look.bold else "normal",
            ha={"start": "left", "middle": "center", "end": "right"}[mark.anchor],
            va="baseline",
            zorder=order,
        )
    else:
        extent = (mark.x, mark.x + mark.width, mark.y + mark.height, mark.y)
        axes.imshow(mark.pixels, extent=extent, aspect="auto", zorder=order)


def _paint(color: str | None, opacity: float) -> tuple[str, float]:
    if color is None:
        return ("#000000", 0.0)
    return ({"ink": INK, "accent": ACCENT, "paper": PAPER}[color], opacity)


def _find_fonts(texts: Iterable[str]) -> list[str]:
    """matplotlib's usual font, then the installed ones that have what it lacks."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    usual = "DejaVu Sans"
    characters = {ord(c) for text in texts for c in text}
    lacking = characters - get_font(findfont(FontProperties(family=usual))).get_charmap().keys()
    found = [usual]
    if lacking:
        for entry in sorted(fontManager.ttflist, key=lambda f: (f.style != "normal", f.fname)):
            if not lacking or len(found) > MAX_FONTS:
                break
            if entry.name in found or entry.name.startswith("Last Resort"):  # which has boxes
                continue
            try:
                has = get_font(entry.fname).get_charmap().keys()
            except (OSError, RuntimeError):  # a font that FreeType does not read
                continue
            if lacking & has:
                found.append(entry.name)
                lacking -= has
    if lacking:
        some = "".join(map(chr, sorted(lacking)[:10]))
        warnings.warn(
            f"no installed font has {some}, drawn as boxes; install one that has, or draw an .svg",
            stacklevel=5,  # whoever called `write_drawing`
        )
    return found
