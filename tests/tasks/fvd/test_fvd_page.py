"""The page of a distance, read back with a parser: its numbers, its text, and what it lacks."""

from dataclasses import replace

import numpy as np
import pytest
from support.pages import decode_picture, inline_hash, policy, read

from i3d.data.shards import Failure
from i3d.metrics.frechet import ClassDistance, CurvePoint, Interval, Moments
from i3d.metrics.manifold import PrecisionRecall
from i3d.tasks.fvd import page as fvd_page
from i3d.tasks.fvd.analysis import Analysis, Extreme, LengthPoint
from i3d.tasks.fvd.page import EXTREMES_SHOWN, STRIP_FRAMES, write_page
from i3d.tasks.fvd.protocols import PROTOCOLS
from i3d.tasks.fvd.result import Damaged, Result, Tally, compute_result
from i3d.tasks.fvd.statistics import WeightsRecord

SHA256 = "9f" * 32
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://127.0.0.1/x onerror=alert(2)>',
    "'; {{ 7 * 7 }} {% raw %}",
    "</style></title></table></script>&amp;",
    "\N{RIGHT-TO-LEFT OVERRIDE}evil",
)


@pytest.fixture
def plain():
    """A distance of few videos, and nothing else."""
    rng = np.random.default_rng(0)
    sets = [Moments(3), Moments(3)]
    for moments, count in zip(sets, (9, 8), strict=True):
        moments.update(rng.normal(size=(count, 3)))
    weights = WeightsRecord("mine.pt", "", SHA256)
    tallies = Tally(9, "files", 12, 2, 1, 1), Tally(8, "array", 8)
    return compute_result(tuple(sets), tallies, PROTOCOLS["google-2018"], weights, "fp32")


@pytest.fixture
def full():
    """All numbers there are, of sets that are large."""
    analysis = Analysis(
        kvd=-0.0123456,
        precision_recall=PrecisionRecall(0.8125, 0.25, 3),
        points=(
            CurvePoint(128, 240.0, 210.0, 290.0),
            CurvePoint(256, 180.5, 170.0, 190.25),
            CurvePoint(512, 151.4, 150.0, 152.0),
        ),
        interval=Interval(140.0, 163.75, 200),
        classes=(
            ClassDistance("archery", 100, 90, 200.5),
            ClassDistance("bowling", 300, 310, 401.0),
            ClassDistance("lonely", 1, 0, None, "1 real and 0 fake; a covariance needs at least 2"),
        ),
        lengths=(LengthPoint(64, 300.0, 400, 512), LengthPoint(16, 150.0, 512, 512)),
        nearest=tuple(Extreme(f"a/{i}", 1.5 + i, f"r/{i}") for i in range(14)),
        farthest=tuple(Extreme(f"b/{i}", 90.0 - i, f"r/{i}") for i in range(3)),
    )
    real = Tally(
        512,
        "files",
        515,
        skipped=2,
        left_out=1,
        damaged=1,
        reasons=(Failure("x/1", "has 3 frames"), Failure("x/2", "no video stream")),
        damages=(Damaged("x/3", "12 frames were lost"),),
    )
    weights = WeightsRecord("rgb_scratch_kinetics400", "the README's", SHA256)
    return Result(
        151.392051234,
        PROTOCOLS["stylegan-v"],
        weights,
        "fp32",
        400,
        real,
        Tally(512, "shards-kinetics-i3d", 512),
        analysis,
    )


@pytest.fixture
def hostile(full):
    """Every text that comes from outside tries to be something else."""
    analysis = replace(
        full.analysis,
        classes=tuple(ClassDistance(name, 2, 2, 1.0) for name in HOSTILE),
        nearest=tuple(Extreme(f'{name}" onload="x', 1.0, name) for name in HOSTILE),
    )
    tally = replace(
        full.real,
        origin=HOSTILE[0],
        reasons=tuple(Failure(name, name) for name in HOSTILE),
        damages=tuple(Damaged(name, name) for name in HOSTILE),
    )
    weights = WeightsRecord(HOSTILE[0], HOSTILE[1], HOSTILE[3])
    return replace(full, analysis=analysis, real=tally, weights=weights)


@pytest.fixture
def page(tmp_path):
    """Function: (result, thumbnails) -> the tree of its page."""

    def made(result, **thumbnails):
        write_page(result, tmp_path / "page.html", **thumbnails)
        return read(tmp_path / "page.html")

    return made


def frames(count=16, height=240, width=320, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def test_the_line_is_at_the_top(page, full, plain):
    header = page(full).one("header")
    assert header.one("h1").text == "FVD 151.39"
    assert header.one("p", class_="lead").text == full.name
    assert header.one("p", class_="line").text == full.line
    assert not list(header.all("p", class_="warning"))
    assert page(plain).one("header").one("p", class_="warning").text == f"{plain.warning}."


def test_every_number_says_what_it_is_good_for(page, full, plain):
    cards = list(page(full).one("ul", class_="numbers").all("li"))
    shown = {c.one("h3").text: c.one("p", class_="value").text for c in cards}
    assert shown == {
        "FVD": "151.39",
        "FVD∞": f"{full.analysis.endless:.5g}",
        "KVD": "−0.012346",
        "Precision": "0.812",
        "Recall": "0.250",
    }
    assert "140 to 163.75: 95 %" in cards[0].text
    for card in cards:
        texts = [p.text for p in card.all("p")]
        assert texts[-2].startswith("Good for ") and texts[-1].startswith("Blind to ")
    (alone,) = page(plain).one("ul", class_="numbers").all("li")
    assert alone.one("p", class_="value").text == f"{plain.value:.5g}"


def places(section):
    """Places of a plot's points, and what its labels say of the axes: (values, places) each."""
    svg = section.one("svg")
    dots = np.array([[float(c.attributes[k]) for k in ("cx", "cy")] for c in svg.all("circle")])
    ends = svg.all("text", **{"text-anchor": "end"})
    y = np.array([[float(t.text.replace("−", "-")), float(t.attributes["y"]) - 4] for t in ends])
    return dots, np.polyfit(y[:, 1], y[:, 0], 1)


def test_the_curve_lies_where_its_points_are(page, full):
    section = page(full).one(id="curve")
    dots, to_value = places(section)
    points = full.analysis.points
    assert np.polyval(to_value, dots[:, 1]) == pytest.approx([p.mean for p in points], abs=0.2)
    # over 1 / N from the place of the sign of infinity
    origin = float(section.one("polyline", class_="dashed").attributes["points"].split(",")[0])
    across = (dots[:, 0] - origin) * [p.count for p in points]
    assert across == pytest.approx([across[0]] * 3, rel=2e-3)
    band = section.one("polygon").attributes["points"].split()
    heights = [np.polyval(to_value, float(place.split(",")[1])) for place in band]
    theirs = [p.highest for p in points] + [p.lowest for p in reversed(points)]
    assert heights == pytest.approx(theirs, abs=0.2)
    assert section.one("table").rows() == [
        ["128", "240", "210", "290"],
        ["256", "180.5", "170", "190.25"],
        ["512", "151.4", "150", "152"],
    ]


def test_the_plot_of_lengths(page, full):
    section = page(full).one(id="lengths")
    dots, to_value = places(section)
    assert dots[0, 0] < dots[1, 0]
    assert np.polyval(to_value, dots[:, 1]) == pytest.approx([150, 300], abs=0.5)
    assert section.one("table").rows() == [
        ["64", "300", "400", "512"],
        ["16", "150", "512", "512"],
    ]


@pytest.mark.parametrize("values", [(5.0, 5.0), (0.0, 0.0), (-3.0, 1e9), (1e-9, 2e-9)])
def test_any_values_have_an_axis(page, full, values):
    lengths = tuple(LengthPoint(i, v, 9, 9) for i, v in enumerate(values, 16))
    found = replace(full, analysis=replace(full.analysis, lengths=lengths))
    dots, to_value = places(page(found).one(id="lengths"))
    spread = (max(values) - min(values)) or abs(values[0]) or 1
    assert np.polyval(to_value, dots[:, 1]) == pytest.approx(values, abs=spread / 100)


def test_labels_do_not_run_into_each_other(page, full):
    points = tuple(CurvePoint(16 << i, 100.0 / 2**i, 1.0, 200.0) for i in range(8))
    section = page(replace(full, analysis=replace(full.analysis, points=points))).one(id="curve")
    labels = [(float(t.attributes["x"]), t.text) for t in section.one("svg").all("text", y="235")]
    assert labels[0][1] == "∞" and labels[-1][1] == "16"
    assert np.diff([x for x, _ in labels]).min() >= 30


def test_one_point_is_no_curve(page, full):
    analysis = replace(
        full.analysis, points=full.analysis.points[:1], lengths=full.analysis.lengths[:1]
    )
    tree = page(replace(full, analysis=analysis))
    assert not list(tree.all("svg", class_="plot"))
    assert "at least 32 videos" in tree.one(id="curve").text
    assert len(tree.one(id="curve").one("table").rows()) == 1
    assert len(tree.one(id="lengths").one("table").rows()) == 1


def test_classes(page, full):
    section = page(full).one(id="classes")
    assert section.one("table").rows() == [
        ["bowling", "", "401", "300", "310"],
        ["archery", "", "200.5", "100", "90"],
        ["lonely", "1 real and 0 fake; a covariance needs at least 2", "1", "0"],
    ]
    assert [r.attributes["width"] for r in section.all("rect")] == ["100.0", "50.0"]
    assert "3 classes" in section.text
    assert f"{full.analysis.class_warning}." in section.text


def test_thumbnails_are_strips_of_frames(page, full):
    fake = {"a/0": frames(), "a/1": frames(2, 400, 200), "b/0": frames(1, 30, 40)}
    tree = page(full, thumbnails=fake, real_thumbnails={"r/0": frames(5, seed=1)})
    nearest, farthest = (tree.one(id=name) for name in ("nearest", "farthest"))
    pictures = [
        (image.attributes["alt"], decode_picture(image.attributes["src"]).shape[:2])
        for image in [*nearest.all("img"), *farthest.all("img")]
    ]
    assert pictures == [
        ("Frames of a/0", (84, STRIP_FRAMES * 112)),  # 112 a side at most
        ("Frames of r/0", (84, STRIP_FRAMES * 112)),
        ("Frames of a/1", (112, 2 * 56)),
        ("Frames of b/0", (30, 40)),  # never enlarged
        ("Frames of r/0", (84, STRIP_FRAMES * 112)),
    ]
    cards = list(nearest.all("li"))
    assert len(cards) == EXTREMES_SHOWN == 12
    assert [p.text for p in cards[1].all("p")] == ["2.5", "a/1", "nearest real video:", "r/1"]
    assert "10 of them without a picture" in tree.one(id="videos").text


def test_a_strip_shows_the_beginning_and_the_end(page, full):
    video = np.zeros((9, 90, 90, 3), np.uint8)
    video[:] = 20 * np.arange(9)[:, None, None, None] + [0, 30, 60]
    source = page(full, thumbnails={"a/0": video}).one(id="nearest").one("img").attributes["src"]
    strip = decode_picture(source).astype(int)
    for place, frame in enumerate((0, 3, 5, 8)):
        found = strip[45, 90 * place + 45]
        assert np.abs(found - video[frame, 0, 0]).max() <= 3  # measured 1


def test_without_pictures(page, full):
    section = page(full).one(id="videos")
    assert not list(section.all("img"))
    assert section.text.count("Without pictures: no frames were at hand.") == 2


def test_the_sets_add_up(page, full, plain):
    section = page(full).one(id="sets")
    assert section.one("table", class_="sets").rows() == [
        ["real", "515", "512", "2", "1", "1", "files"],
        ["fake", "512", "512", "0", "0", "0", "shards-kinetics-i3d"],
    ]
    skipped = section.one("details", id="real-skipped")
    assert skipped.one("summary").text == "2 skipped real videos, and why"
    assert skipped.one("table").rows() == [["x/1", "has 3 frames"], ["x/2", "no video stream"]]
    damaged = section.one("details", id="real-damaged")
    assert damaged.one("table").rows() == [["x/3", "12 frames were lost"]]
    section = page(plain).one(id="sets")
    assert not list(section.all("details"))
    assert "2 skipped real videos whose reasons are not at hand" in section.text


def test_long_lists_are_cut(page, full, monkeypatch):
    monkeypatch.setattr(fvd_page, "REASONS_SHOWN", 1)
    monkeypatch.setattr(fvd_page, "CLASSES_SHOWN", 2)
    tree = page(full)
    assert len(tree.one(id="real-skipped").one("table").rows()) == 1
    assert "and 1 more" in tree.one(id="real-skipped").text
    assert len(tree.one(id="classes").one("table").rows()) == 2
    assert "and 1 more" in tree.one(id="classes").text


def test_sections_without_content_are_not_there(page, plain):
    tree = page(plain)
    assert [s.attributes["id"] for s in tree.all("section")] == ["numbers", "sets", "provenance"]
    links = [a.attributes["href"] for a in tree.one("nav").all("a")]
    assert links == ["#numbers", "#sets", "#provenance"]


def test_provenance(page, full):
    text = page(full).one(id="provenance").text
    assert SHA256 in text and "Protocol stylegan-v" in text
    pairs = {}
    for part in page(full).one(id="provenance").all("dl"):
        pairs |= {t.text: d.text for t, d in zip(part.all("dt"), part.all("dd"), strict=True)}
    assert pairs["Checkpoint"] == "rgb_scratch_kinetics400"
    for name, value in full.protocol.settings.items():
        assert pairs[name] == str(value)
    given = page(replace(full, weights=None)).one(id="provenance").text
    assert "Unknown: features were given, of 400 dimensions." in given


def test_nothing_is_outside_the_page(page, full, hostile):
    for result in (full, hostile):
        thumbnails = {v.key: frames(2, 60, 80) for v in result.analysis.nearest}
        tree = page(result, thumbnails=thumbnails)
        for element in tree.all():
            for name, value in element.attributes.items():
                if name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
                    assert value.startswith(("data:", "#")), f"{element.tag} {name}={value}"
                assert not name.startswith("on") and name != "style", f"{element.tag} {name}"
        ids = [e.attributes["id"] for e in tree.all() if "id" in e.attributes]
        assert len(ids) == len(set(ids))
        for link in tree.all("a"):
            assert link.attributes["href"].removeprefix("#") in ids
        assert policy(tree) == {
            "default-src": "'none'",
            "style-src": inline_hash(tree, "style"),
            "script-src": "'none'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
        }


def test_hostile_names_are_text(page, hostile):
    # the parser checks that nothing closes what it did not open
    tree = page(hostile, thumbnails={hostile.analysis.nearest[0].key: frames(2, 60, 80)})
    assert not list(tree.all("script"))
    shown = [*HOSTILE[:4], "\\u202eevil"]
    assert {row[0] for row in tree.one(id="classes").one("table").rows()} == set(shown)
    for name in ("real-skipped", "real-damaged"):
        assert tree.one(id=name).one("table").rows() == [[n, n] for n in shown]
    assert tree.one("img").attributes["alt"] == f"Frames of {hostile.analysis.nearest[0].key}"
    assert tree.one("p", class_="line").text == hostile.line


def test_a_page_appears_whole_or_not_at_all(tmp_path, full):
    location = tmp_path / "page.html"
    location.write_text("before")
    with pytest.raises(Exception):  # noqa: B017  a caller's mistake; only the file matters here
        write_page(full, location, thumbnails={"a/0": np.zeros((2, 0, 0, 3), np.uint8)})
    assert location.read_text() == "before"
    assert list(tmp_path.iterdir()) == [location]


def test_a_page_is_small(tmp_path, full):
    location = tmp_path / "page.html"
    given = {v.key: frames() for v in (*full.analysis.nearest, *full.analysis.farthest)}
    write_page(full, location, thumbnails=given)
    assert location.stat().st_size < 1_000_000  # measured 0.4 MB; noise is a JPEG's worst case
