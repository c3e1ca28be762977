"""What the HTML pages share: one frame with its policy, one style sheet, pictures, and writing.

A page is one file that needs no network. Its policy (``templates/page.html.jinja``) lets nothing
run or load but its own style and script, by their hashes, and pictures that it holds itself.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, TemplateNotFound
from markupsafe import Markup

from i3d import files
from i3d.errors import hide_secrets, shown

SHARED = "i3d.report"  # the package of the frame and of the style sheet that all pages have


def write_html(
    location: files.Location,
    package: str,
    name: str,
    /,
    *,
    filters: Mapping[str, Callable[..., str]] = {},
    **values: Any,
) -> None:
    """Render a package's template to a page, atomically; whatever is put into it is escaped.

    The template is ``templates/NAME.html.jinja``, which extends ``page.html.jinja``. ``NAME.css``
    beside it follows the shared style sheet; ``NAME.js``, if there is one, is the page's script.

    Args:
        location: path or URL of the page.
        package: dotted name of the package that has the templates.
        name: NAME of the files.
        filters: functions that the template knows beside ``percent`` and ``visible``.
        values: names that the template knows.
    """
    templates = _templates(package)
    templates.filters |= filters
    style = _read(SHARED, "page.css") + _read(package, f"{name}.css")
    try:
        script = _read(package, f"{name}.js")
    except TemplateNotFound:  # nothing on it moves, and nothing may
        script = ""
    html = templates.get_template(f"{name}.html.jinja").render(
        style=Markup(style),
        style_hash=_policy_hash(style),
        script=Markup(script),
        script_hash=_policy_hash(script),
        **values,
    )
    # `replace`: a name of a JSON file can hold half a surrogate pair, which has no UTF-8
    files.write(location, hide_secrets(html).encode("utf-8", "replace"))


def render_fragment(package: str, name: str, /, **values: Any) -> str:
    """Render ``templates/NAME.html.jinja`` of a package to HTML for within a page of others.

    It has neither style sheet nor script. Whatever is put into it is escaped, as in `write_html`.
    """
    html = _templates(package).get_template(f"{name}.html.jinja").render(**values)
    return hide_secrets(html).encode("utf-8", "replace").decode()


def _templates(package: str) -> Environment:
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(SHARED)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "visible": visible}
    return templates


def _read(package: str, name: str) -> str:
    """Text of a file in a package's folder ``templates``."""
    text: str = PackageLoader(package).get_source(Environment(autoescape=True), name)[0]
    return text


def _policy_hash(inline: str) -> str:
    """Hash of an inline style or script, as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}"


def percent(share: float, digits: int = 2) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * share:.{digits}f}"


def visible(text: str, most: int = 200) -> str:
    """The beginning of other people's text in one line, with what would steer it escaped."""
    cut = text if len(text) <= most else f"{text[:most]}\N{HORIZONTAL ELLIPSIS}"
    return shown(cut).replace("\n", "\\n")


@dataclass(frozen=True)
class Picture:
    """A picture that a page holds itself.

    Attributes:
        uri: the JPEG as a data URI.
        width: pixels.
        height: pixels.
    """

    uri: str
    width: int
    height: int


def embed_picture(
    pixels: np.ndarray, *, quality: int, size: tuple[int, int] | None = None
) -> Picture:
    """A picture, uint8 (H, W, 3) RGB, as JPEG in a data URI.

    Args:
        pixels: rows from the top.
        quality: JPEG's, 1 to 100.
        size: width and height to scale it to; default: its own.
    """
    if size is not None:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    height, width = pixels.shape[:2]
    jpeg = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420"
    )
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", width, height)
