"""The pictures of a video of maps: streams side by side, maps over them, a caption under them.

+-----------+ +-----------+
|  . . . .  | |  . . . .  |   a stream each; the square that the networks see is bright,
|  .     .  | |  .     .  |   and has the map over it
|  . . . .  | |  . . . .  |
+-----------+ +-----------+
  clean and jerk      100 %
  3.52 s      evidence ░▒▓
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np

from i3d.console import visible
from i3d.presets import Preset, Stream

SHORT_SIDE = 512  # pixels of a stream's picture, unless the other side were longer than
LONG_SIDE = 1280
MIN_WIDTH = 480  # of all pictures together: room for the caption of a narrow one
CAPTION_HEIGHT = 84

_GAP = 4  # between two pictures
_MARGIN = 16
_OUTSIDE = 0.35  # brightness of what no network sees
_COLOR_LEFT = 0.3  # of the picture's own colour under a map
_FLOW_BRIGHTNESS = 0.55  # of flow under a map, whose colours stay: they say where it moves
_FLOW_OPACITY = 0.7  # of the map over it, as a part of that over frames
_OUTLINE = (255, 244, 214)  # of what has half of the largest evidence or more
_BACKGROUND = (18, 18, 22)
_BRIGHT, _DIM, _AMBER = (245, 245, 245), (165, 165, 172), (255, 190, 80)
_LARGE, _SMALL = 28, 17  # pixels of the letters
_MAX_CHARACTERS = 200  # of a name that are looked at: more have no room anywhere
_MAX_WIDTH = 1 << 16  # pixels of a line, which OpenCV would break at the picture's edge


@dataclass(frozen=True)
class Layout:
    """Where things are, in pixels of the video.

    Attributes:
        height, width: of each stream's picture.
        crop: rows and columns of the square that the networks see, in the picture.
        count: of streams.
    """

    height: int
    width: int
    crop: tuple[slice, slice]
    count: int

    @classmethod
    def fit(cls, height: int, width: int, preset: Preset, count: int) -> "Layout":
        """The layout of ``count`` pictures of this size, which a preset's networks look at."""
        scale = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
        shown = _even(scale * height), _even(scale * width)
        corner = preset.find_corner(height, width)
        rows, columns = (
            slice(round(start * new / old), round((start + preset.crop) * new / old))
            for start, new, old in zip(corner, shown, (height, width), strict=True)
        )
        return cls(shown[0], shown[1], (rows, columns), count)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the video."""
        return self.height + CAPTION_HEIGHT, max(MIN_WIDTH, self._pictures_width)

    @property
    def _pictures_width(self) -> int:
        return self.count * self.width + (self.count - 1) * _GAP

    def canvas(self) -> np.ndarray:
        """An empty picture of the video: uint8 (H, W, 3)."""
        return np.full((*self.size, 3), _BACKGROUND, np.uint8)

    def place(self, canvas: np.ndarray, panel: int) -> np.ndarray:
        """The part of the canvas that is a stream's picture."""
        left = (self.size[1] - self._pictures_width) // 2 + panel * (self.width + _GAP)
        return canvas[: self.height, left : left + self.width]


def _even(pixels: float) -> int:
    """The nearest even number, as H.264 takes it; 2 at least."""
    return max(2, 2 * round(pixels / 2))


# --- map and colour -------------------------------------------------------------------------------


@cache
def _color_scale() -> tuple[np.ndarray, np.ndarray]:
    """Colour float32 (256, 3) and opacity float32 (256, 1) of evidence from none to the largest.

    The colours are matplotlib's inferno, whose brightness grows evenly to the eye, without its
    black beginning and its white end: black would look like a shadow, white like a light.
    """
    ramp = np.linspace(0, 1, 256)
    levels = np.round(255 * (0.32 + 0.58 * ramp)).astype(np.uint8)
    colors = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]  # BGR -> RGB
    return colors.astype(np.float32), (0.85 * ramp).astype(np.float32)[:, None]


def draw_picture(
    place: np.ndarray, frame: np.ndarray, shares: np.ndarray, layout: Layout, stream: Stream
) -> None:
    """Draw a stream's picture with its map.

    Args:
        place: where, uint8 (layout.height, layout.width, 3).
        frame: uint8 (H, W, 3), RGB, of any size.
        shares: evidence of each pixel of the square as a share of the largest, (crop, crop).
        layout: where the square is.
        stream: what the frame is of.
    """
    size = (layout.width, layout.height)
    shrinks = frame.shape[0] > layout.height
    way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    bright = cv2.resize(frame, size, interpolation=way)
    place[:] = cv2.convertScaleAbs(bright, alpha=_OUTSIDE)
    inside = bright[layout.crop]
    height, width = inside.shape[:2]
    levels = cv2.resize(np.clip(shares, 0, 1), (width, height), interpolation=cv2.INTER_LINEAR)
    index = np.round(255 * levels).astype(np.uint8)
    colors, opacity = _color_scale()
    under, share = (
        (_fade(inside), opacity[index])  # (h, w, 3), (h, w, 1)
        if stream == "rgb"
        else (_FLOW_BRIGHTNESS * inside, _FLOW_OPACITY * opacity[index])
    )
    square = np.round((1 - share) * under + share * colors[index]).astype(np.uint8)
    outlines, _ = cv2.findContours(
        (index >= 128).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(square, outlines, -1, _OUTLINE, 1, cv2.LINE_AA)
    place[layout.crop] = square


def _fade(picture: np.ndarray) -> np.ndarray:
    """Take most of a picture's own colour, which skin and wood have in common with evidence."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return cv2.addWeighted(picture, _COLOR_LEFT, cv2.merge([gray] * 3), 0.9 - _COLOR_LEFT, 0)


# --- the caption ----------------------------------------------------------------------------------


def draw_title(place: np.ndarray, text: str) -> None:
    """Write a stream's name into the corner of its picture."""
    place[: _SMALL + 12, : measure_text(text, _SMALL) + 20] //= 3
    write_text(place, text, left=10, base=_SMALL + 4, pixels=_SMALL, color=_BRIGHT)


def draw_caption(
    canvas: np.ndarray, name: str, probability: float, *, is_sure: bool, seconds: float, span: str
) -> None:
    """Write what a window is called under the pictures.

    Args:
        canvas: of the whole video, uint8 (H, W, 3).
        name: of the class whose map is drawn: any text, cut to the room that there is.
        probability: of the class, 0..1.
        is_sure: whether the window is called so; else it is uncertain.
        seconds: when the picture is.
        span: when the window is.
    """
    height, width = canvas.shape[:2]
    upper, lower = height - CAPTION_HEIGHT + 36, height - 18  # base lines
    share = f"{100 * probability:.0f} %"  # as a segment is printed
    share_left = width - _MARGIN - measure_text(share, _LARGE)
    left = _MARGIN
    if not is_sure:
        left = write_text(canvas, "uncertain", left=left, base=upper, pixels=_LARGE, color=_AMBER)
        left = write_text(canvas, "map of", left=left + 14, base=upper, pixels=_SMALL, color=_DIM)
        left += 7
    pixels, color = (_LARGE, _BRIGHT) if is_sure else (_SMALL, _DIM)
    fitted = fit_text(name, pixels, share_left - _MARGIN - left)
    write_text(canvas, fitted, left=left, base=upper, pixels=pixels, color=color)
    write_text(canvas, share, left=share_left, base=upper, pixels=_LARGE, color=color)

    now = f"{seconds:.2f} s"
    write_text(canvas, now, left=_MARGIN, base=lower, pixels=_SMALL, color=_BRIGHT)
    # A place of its own: it would move with the width of the time.
    after = _MARGIN + max(90, measure_text(now, _SMALL) + 14)
    left = _draw_legend(canvas, right=width - _MARGIN, base=lower)
    fitted = fit_text(span, _SMALL, left - _MARGIN - after)
    write_text(canvas, fitted, left=after, base=lower, pixels=_SMALL, color=_DIM)


def _draw_legend(canvas: np.ndarray, *, right: int, base: int) -> int:
    """Draw the colours' meaning; returns where it begins."""
    word = "evidence"
    bar = slice(base - 11, base + 1), slice(right - 110, right)
    colors, opacity = _color_scale()
    index = np.linspace(0, 255, 110).round().astype(int)
    canvas[bar] = ((1 - opacity) * 90 + opacity * colors)[index]  # over a gray, as over a picture
    left = right - 110 - 8 - measure_text(word, _SMALL)
    write_text(canvas, word, left=left, base=base, pixels=_SMALL, color=_DIM)
    return left


# --- letters --------------------------------------------------------------------------------------
# OpenCV 5 has fonts of its own, with the letters of European, Hebrew, Arabic, Chinese, Japanese and
# Korean scripts. What they lack it would write as question marks; here that is written as Python
# escapes it. It writes all from left to right, so words of the other direction are turned first; it
# joins no letters, so Arabic ones stand alone.


@cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _weight(pixels: int) -> int:
    return 500 if pixels == _LARGE else 400


def measure_text(text: str, pixels: int) -> int:
    """Width of one line in pixels."""
    size = (_MAX_WIDTH, 4 * pixels)  # where no line is broken
    origin = (0, 2 * pixels)
    left, _, width, _ = cv2.getTextSize(size, text, origin, _font(), pixels, _weight(pixels))
    return int(left + width)


def write_text(
    picture: np.ndarray,
    text: str,
    *,
    left: int,
    base: int,
    pixels: int,
    color: tuple[int, int, int],
) -> int:
    """Write one line at its base line; returns where it ends."""
    canvas = np.ascontiguousarray(picture)
    cv2.putText(
        canvas, text, (left, base), color, _font(), pixels, _weight(pixels), 0, (0, _MAX_WIDTH)
    )
    if canvas is not picture:
        picture[:] = canvas
    return left + measure_text(text, pixels)


def fit_text(text: str, pixels: int, room: int) -> str:
    """Any text as one line that can be written in so many pixels, cut with "…" where it is longer.

    Control characters, and what would turn the direction of other text, are escaped.
    """
    line = "".join(
        character if _has_glyph(character) else ascii(character)[1:-1]
        for character in visible(text[:_MAX_CHARACTERS])
    )
    if len(text) <= _MAX_CHARACTERS and measure_text(line, pixels) <= room:
        return _in_sight_order(line)
    fits, too_long = 0, len(line) + 1  # characters before the dots
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if measure_text(f"{line[:middle].rstrip()}…", pixels) <= room:
            fits = middle
        else:
            too_long = middle
    return _in_sight_order(f"{line[:fits].rstrip()}…") if fits else ""


def _in_sight_order(line: str) -> str:
    """A line in the order of its letters from the left, as a line of Latin script quotes others."""
    kinds = "".join(_DIRECTION.get(unicodedata.bidirectional(c), "-") for c in line)
    parts, end = [], 0
    for run in _FROM_THE_RIGHT.finditer(kinds):
        letters = _LETTER.finditer(kinds, *run.span())
        turned = [line[slice(*letter.span())] for letter in letters][::-1]
        parts += [line[end : run.start()], *turned]
        end = run.end()
    return "".join([*parts, line[end:]])


# Unicode's classes: letters read from the right, from the left, digits, and marks on letters.
_DIRECTION = {"R": "R", "AL": "R", "L": "L", "EN": "N", "AN": "N", "NSM": "M"}
_FROM_THE_RIGHT = re.compile(r"R(?:[^L]*[RM])?")  # with what stands between such letters
_LETTER = re.compile(r"N+|[^M]M*")  # numbers are read from the left everywhere


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    """Whether the fonts have it: else it is drawn as a question mark is."""
    return character == "?" or not np.array_equal(_draw_alone(character), _draw_alone("?"))


def _draw_alone(character: str) -> np.ndarray:
    picture = np.zeros((64, 64), np.uint8)
    cv2.putText(picture, character, (16, 44), (255,), _font(), 32, 400)
    return picture
