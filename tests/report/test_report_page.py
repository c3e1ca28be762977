"""What all pages share: the frame and its policy, escaping, pictures, and whole files."""

import sys

import cv2
import numpy as np
import pytest
from jinja2 import UndefinedError
from support.pages import decode_picture, inline_hash, policy, read

from i3d.report.page import embed_picture, percent, write_html

TEMPLATE = """{% extends "page.html.jinja" %}
{% block title %}{{ name }}{% endblock %}
{% block body %}
<h1 title="{{ name }}">{{ name | shout }}</h1><p>{{ 0.5 | percent }}</p>
{% endblock %}
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package with a page named ``sheet``."""
    templates = tmp_path / "a_room" / "templates"
    templates.mkdir(parents=True)
    (templates.parent / "__init__.py").touch()
    (templates / "sheet.html.jinja").write_text(TEMPLATE)
    (templates / "sheet.css").write_text("h1 { color: red; }\n")
    (templates / "sheet.js").write_text("if (1 < 2 && true) {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_room", raising=False)  # that of another test
    return "a_room"


def write(room, location, **values):
    write_html(location, room, "sheet", filters={"shout": str.upper}, **values)


def test_a_page_is_the_frame_around_a_body(room, tmp_path):
    write(room, tmp_path / "page.html", name="Jump")
    page = read(tmp_path / "page.html")
    assert (page.one("title").text, page.one("h1").text) == ("Jump", "JUMP")
    assert page.one("p").text == "50.00"
    assert page.one("script").children == ["if (1 < 2 && true) {}\n"]
    shared, own, rest = page.one("style").children[0].partition("h1 { color: red; }\n")
    assert ":root" in shared and own and not rest


def test_its_policy_lets_its_own_style_and_script_alone_run(room, tmp_path):
    write(room, tmp_path / "page.html", name="Jump")
    page = read(tmp_path / "page.html")
    assert policy(page) == {
        "default-src": "'none'",
        "style-src": inline_hash(page, "style"),
        "script-src": inline_hash(page, "script"),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_a_page_without_a_script_lets_none_run(room, tmp_path):
    (tmp_path / "a_room" / "templates" / "sheet.js").unlink()
    write(room, tmp_path / "page.html", name="Jump")
    page = read(tmp_path / "page.html")
    assert not list(page.all("script"))
    assert policy(page)["script-src"] == "'none'"


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '" onload="alert(2)', "{{ 7 * 7 }}", "</title></style>"]
)
def test_what_is_put_in_is_text(room, tmp_path, name):
    write(room, tmp_path / "page.html", name=name)
    page = read(tmp_path / "page.html")
    assert page.one("title").text == name
    assert page.one("h1").attributes == {"title": name}
    assert page.one("h1").text == name.upper()
    assert len(list(page.all("script"))) == 1


def test_half_a_surrogate_pair_is_a_question_mark(room, tmp_path):
    write(room, tmp_path / "page.html", name="g\ud83dm")
    assert read(tmp_path / "page.html").one("title").text == "g?m"


def test_a_page_that_lacks_a_value_is_not_written(room, tmp_path):
    (tmp_path / "page.html").write_text("before")
    with pytest.raises(UndefinedError, match="name"):
        write(room, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_room", "page.html"]


def test_percent():
    assert [percent(1 / 3), percent(1 / 3, 0), percent(1)] == ["33.33", "33", "100.00"]


def test_a_picture_keeps_its_size_and_colours():
    pixels = np.full((60, 90, 3), (200, 30, 40), np.uint8)
    picture = embed_picture(pixels[:, ::-1], quality=90)  # no copy of it is needed
    assert (picture.width, picture.height) == (90, 60)
    shown = decode_picture(picture.uri)
    assert shown.shape == (60, 90, 3)
    assert np.abs(shown.astype(int) - (200, 30, 40)).max() <= 3  # measured 1


def test_a_picture_is_scaled_by_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    picture = embed_picture(pixels, quality=100, size=(12, 8))
    assert (picture.width, picture.height) == (12, 8)
    means = cv2.resize(pixels, (12, 8), interpolation=cv2.INTER_AREA)
    assert embed_picture(means, quality=100) == picture
    gray = np.abs(decode_picture(picture.uri).mean(-1) - means.mean(-1))
    assert gray.mean() < 4  # gray levels; chroma is halved


def test_a_lower_quality_is_smaller():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    sizes = [len(embed_picture(pixels, quality=q).uri) for q in (50, 80, 95)]
    assert sizes == sorted(sizes) and sizes[0] < 0.6 * sizes[2]
