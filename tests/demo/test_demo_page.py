"""The page of the demo: what it shows is what was found, and it needs nothing but its folder."""

import re
from urllib.parse import unquote

import av
import pytest
from support.pages import decode_picture, inline_hash, policy

from i3d.demo.actions import ACTIONS
from i3d.demo.sequence import SEQUENCE, action_at
from i3d.metrics import probabilities


def test_page_says_that_the_videos_are_synthetic(page):
    text = page.one("header").text
    assert "videos of this page are synthetic" in text
    assert "trained on other videos drawn by the same program" in text
    assert "nothing about real videos" in text


def test_page_says_that_the_real_network_is_not_there(page):
    section = page.one(id="released")
    assert "figures above are from synthetic videos and two small networks" in section.text
    assert "rgb_scratch_kinetics400, trained on real videos" in section.text
    problem = r"It was not fetched: \S+/model.ckpt.index: no such file\. To fetch it later:"
    assert re.search(problem, section.text)
    assert [pre.text for pre in section.all("pre")] == [
        "i3d checkpoints download rgb_scratch_kinetics400",
        "i3d predict VIDEO --checkpoint rgb_scratch_kinetics400",
    ]


def test_page_has_the_table(page, made):
    found, _ = made
    rows = {tr.attributes["data-row"]: tr for tr in page.one(id="accuracy").all("tr") if "data-row"
            in tr.attributes}  # fmt: skip
    assert list(rows) == ["rgb", "flow", "two_stream"]
    for row, s in found.evaluation.scores.items():
        values = [f"{100 * v:.2f}" for v in (s.top1.value, s.top5.value, s.mean_class)]
        assert [v.text for v in rows[row].all(class_="value")] == values
        ranges = [f"{100 * p.low:.2f}–{100 * p.high:.2f}" for p in (s.top1, s.top5)]
        assert [r.text for r in rows[row].all(class_="range")] == ranges


def test_page_shows_a_sample_of_every_action(page, made, place):
    found, _ = made
    about = found.evaluation.predictions
    cards = list(page.one("ol", class_="samples").all("li"))
    assert [card.one("h3").text for card in cards] == list(ACTIONS)
    for action, card in zip(ACTIONS, cards, strict=True):
        video = card.one("video").attributes
        assert {"muted", "loop", "playsinline", "controls"} <= set(video)
        assert (video["preload"], video["aria-label"]) == ("metadata", action)
        source = f"videos/{action}/{action.replace(' ', '-')}-0000"
        assert unquote(video["src"]) == f"{source}.mp4"
        size = decode_picture(video["poster"]).shape[:2]
        assert size == (int(video["height"]), int(video["width"]))
        flows = [decode_picture(i.attributes["src"]) for i in card.all("img")]
        assert [f.shape[:2] for f in flows] == [size] * 3
        index = about.videos.index(source.removeprefix("videos/"))
        for row, logits in found.evaluation.logits.items():
            shares = probabilities(logits[index])
            answer = ACTIONS[shares.argmax()]
            _, said, sureness = (c.text for c in card.one("tr", **{"data-row": row}).all()
                                 if c.tag in ("th", "td"))  # fmt: skip
            assert said == (
                "right" if answer == action else f"wrong:{answer}"
            )  # spaces at the ends of an element are cut
            assert sureness == f"{100 * shares.max():.0f} %"


def test_timeline_lies_where_its_windows_are(page, made):
    found, _ = made
    section = page.one(id="timeline")
    svg = section.one("svg", class_="i3d-timeline")
    left, scale = (float(svg.attributes[f"data-{name}"]) for name in ("left", "scale"))
    names = {float(t.attributes["y"]): t.text for t in svg.one("g", class_="i3d-name").all("text")}
    rows = [names[y] for y in sorted(names)]
    assert rows[: len(SEQUENCE)] == list(SEQUENCE)
    truths = [t.attributes for t in svg.one("g", class_="i3d-truth").all("rect")]
    for segment, box in zip(found.truth, truths, strict=True):
        assert float(box["x"]) == pytest.approx(left + scale * segment.start_seconds, abs=0.06)
        middle = float(box["y"]) + float(box["height"]) / 2
        assert names[min(names, key=lambda y: abs(y - 4 - middle))] == segment.action
    table = section.one("details").one("table").rows()
    assert len(table) == len(list(section.all("image"))) == len(found.timeline.windows)
    right = 0
    for window, (span, truth, answer, share) in zip(found.timeline.windows, table, strict=True):
        shares = probabilities(window.logits)
        assert span == f"{window.start_seconds:.2f}–{window.end_seconds:.2f}"
        assert truth == action_at(found.truth, window.start_seconds)
        assert (answer, share) == (ACTIONS[shares.argmax()], f"{100 * shares.max():.1f}")
        right += truth == answer
    assert f"right in {right} of {len(table)} windows" in section.text
    cells = svg.one("g", class_="i3d-cell").all("rect")
    opaque = [float(cell.attributes["fill-opacity"]) for cell in cells]
    best = [probabilities(window.logits).max() for window in found.timeline.windows]
    assert sorted(opaque)[-1] == pytest.approx(max(best), abs=0.001)


def test_poster_is_the_first_frame_of_the_longer_video(page, made, place):
    found, _ = made
    video = page.one("video", id="sequence").attributes
    poster = decode_picture(video["poster"])
    with av.open(place / found.folder.sequence) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert poster.shape == frame.shape == (int(video["height"]), int(video["width"]), 3)
    assert abs(poster.astype(int) - frame).mean() < 4  # JPEG


def test_page_needs_nothing_but_its_folder(page, place):
    ids = {e.attributes["id"] for e in page.all() if "id" in e.attributes}
    for element in page.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on") and name != "style", f"{element.tag} {name}"
            if name not in ("src", "href", "poster", "srcset", "data", "action", "xlink:href"):
                continue
            if value.startswith("#"):
                assert value[1:] in ids
            elif not value.startswith("data:"):
                assert not value.startswith("/") and ".." not in value and ":" not in value
                assert (place / "demo" / unquote(value)).is_file()
    style = page.one("style").children[0]
    assert "url(" not in style and "@import" not in style
    assert policy(page) == {
        "default-src": "'none'",
        "style-src": inline_hash(page, "style"),
        "script-src": inline_hash(page, "script"),
        "img-src": "data:",
        "media-src": "'self' file:",  # the videos beside it, however it is opened
        "base-uri": "'none'",
        "form-action": "'none'",
    }
