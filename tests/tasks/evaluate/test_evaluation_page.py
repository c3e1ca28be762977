"""The page of an evaluation, read back with a parser: its numbers, its text, and what it lacks."""

from dataclasses import replace

import numpy as np
import pytest
from support.pages import decode_picture, inline_hash, policy, read

from i3d.classes import class_list
from i3d.data.shards import Failure
from i3d.metrics import BINS
from i3d.tasks.evaluate import page as evaluation_page
from i3d.tasks.evaluate.page import MISTAKES_SHOWN, confused_classes, write_page
from i3d.tasks.evaluate.predictions import About, Predictions, UsedCheckpoint
from i3d.tasks.evaluate.result import Cost, Evaluation

RGB_SHA256, FLOW_SHA256 = "a3" * 32, "9f" * 32
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://127.0.0.1/x onerror=alert(2)>',
    "'; {{ 7 * 7 }} {% raw %}",
    "</style></title></table></script>&amp;",
    "\N{RIGHT-TO-LEFT OVERRIDE}evil",
)


def make(classes, targets, logits, **about):
    """An evaluation whose unnamed circumstances do not matter."""
    settings = {
        "dataset": "gym",
        "preset": "kinetics-i3d",
        "frames": 250,
        "clips": 1,
        "crops": 1,
        "precision": "fp32",
        "checkpoints": {s: UsedCheckpoint(f"{s}.safetensors", "", "0c" * 32) for s in logits},
        "versions": {"torch": "2.9.1"},
        "skipped": (),
    } | about
    found = len(targets) + len(settings["skipped"])
    videos = tuple(f"v{i}" for i in range(len(targets)))
    described = About(classes=tuple(classes), found=found, **settings)
    return Evaluation(Predictions(described, videos, np.array(targets), logits))


@pytest.fixture(scope="module")
def kinetics():
    """600 videos of 390 of the 400 classes, two released networks, two skipped videos."""
    rng = np.random.default_rng(0)
    names = class_list("kinetics400").names
    targets = rng.permutation(np.arange(600) % 390)
    logits = {}
    for stream in ("rgb", "flow"):
        logits[stream] = rng.normal(0, 1, (600, 400)).astype(np.float32)
        logits[stream][np.arange(600), targets] += rng.normal(3.5, 1, 600)
        logits[stream][np.arange(600), targets // 2] += rng.normal(2.5, 1, 600)
    evaluation = make(
        names,
        targets,
        logits,
        dataset="k400-val",
        frames=64,
        checkpoints={
            "rgb": UsedCheckpoint("rgb_imagenet_kinetics400", "the README's", RGB_SHA256),
            "flow": UsedCheckpoint("flow_imagenet_kinetics400", "", FLOW_SHA256),
        },
        skipped=(Failure("a/1", "has 3 frames"), Failure("a/2", "no video stream")),
    )
    return replace(evaluation, cost=Cost(3725.4, 600, "NVIDIA H200", 2, 12, 16))


@pytest.fixture(scope="module")
def hostile():
    """Every text that comes from outside tries to be something else."""
    rng = np.random.default_rng(0)
    targets = np.arange(25) % 5
    evaluation = make(
        HOSTILE,
        targets,
        {"rgb": rng.normal(0, 2, (25, 5)).astype(np.float32)},
        dataset=HOSTILE[0],
        preset=HOSTILE[1],
        checkpoints={"rgb": UsedCheckpoint(HOSTILE[0], "javascript:alert(3)", HOSTILE[3])},
        versions={HOSTILE[0]: HOSTILE[3]},
        skipped=(Failure(HOSTILE[1], HOSTILE[3]),),
    )
    videos = tuple(f'{HOSTILE[i % 5]}" onload="alert({i})' for i in range(25))
    predictions = replace(evaluation.predictions, videos=videos)
    return replace(evaluation, predictions=predictions, cost=Cost(1.0, 25, HOSTILE[0], 1, 0, 1))


@pytest.fixture
def flawless():
    """Seven videos, all right, and one skipped."""
    targets = np.array([0, 0, 1, 1, 2, 2, 2])
    logits = {"rgb": 3 * np.eye(3, dtype=np.float32)[targets]}
    return make(("jump", "run", "sit"), targets, logits, skipped=(Failure("b", "is empty"),))


# --- a page as a tree -----------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    """Function: (evaluation, thumbnails) -> the tree of its page."""

    def made(evaluation, **thumbnails):
        write_page(evaluation, tmp_path / "page.html", **thumbnails)
        return read(tmp_path / "page.html")

    return made


def pictures(evaluation, *sizes):
    """Noise for the first mistakes, of these (height, width)."""
    mistakes = evaluation.surest_mistakes(MISTAKES_SHOWN)
    rng = np.random.default_rng(0)
    return {
        m.video: rng.integers(0, 256, (*size, 3), np.uint8)
        for m, size in zip(mistakes, sizes, strict=False)
    }


# --- tests ----------------------------------------------------------------------------------------


def test_head_says_what_was_evaluated(page, kinetics):
    tree = page(kinetics)
    header = tree.one("header").text
    assert header.startswith("k400-val 602 videos found: 600 evaluated, 2 skipped.")
    assert "Preset kinetics-i3d; 1 clip of 64 frames, centre crop; fp32." in header


def test_table_has_the_scores(page, kinetics):
    table = page(kinetics).one("table", class_="scores")
    shown = {row.attributes["data-row"]: row for row in table.all("tr", class_="ours")}
    assert list(shown) == ["rgb", "flow", "two_stream"] == list(kinetics.scores)
    for row, s in kinetics.scores.items():
        values = [100 * v for v in (s.top1.value, s.top5.value, s.mean_class, s.calibration_error)]
        assert [v.text for v in shown[row].all(class_="value")] == [f"{v:.2f}" for v in values]
        ranges = [f"{100 * p.low:.2f}–{100 * p.high:.2f}" for p in (s.top1, s.top5)]
        assert [r.text for r in shown[row].all(class_="range")] == ranges
    assert "best" in shown["two_stream"].attributes["class"]


def test_published_results_stand_under_their_row(page, kinetics):
    accuracy = page(kinetics).one(id="accuracy")
    rgb, flow, both = accuracy.all("tbody")
    found = [[c.text for c in tr.all("td")][:2] for tr in rgb.all("tr", class_="published")]
    assert found == [["71.1", "89.3"], ["69.8", ""], ["65.96", "86.01"]]
    assert len(list(flow.all("tr", class_="published"))) == 2
    assert "74.2" in both.text
    for result in kinetics.published:
        assert result.protocol in accuracy.text
    assert len(kinetics.notes) == 3  # the frames differ, too
    for note in kinetics.notes:
        assert note in accuracy.text


def test_curve_lies_where_its_bins_are(page, kinetics):
    section = page(kinetics).one(id="calibration")
    frame = next(section.all("rect", class_="frame")).attributes
    left, top, side = (float(frame[k]) for k in ("x", "y", "width"))
    curve = section.one("g", class_="curve-two_stream")
    bins = [b for b in kinetics.scores["two_stream"].reliability if b.videos]
    circles = [c.attributes for c in curve.all("circle")]
    places = [((float(c["cx"]) - left) / side, 1 - (float(c["cy"]) - top) / side) for c in circles]
    assert np.allclose(places, [(b.confidence, b.accuracy) for b in bins], atol=0.05 / side)
    heights = [float(r.attributes["height"]) for r in curve.all("rect", class_="videos")]
    most = max(b.videos for b in bins)
    assert np.allclose(heights, [64 * b.videos / most for b in bins], atol=0.05)
    checked = [i.attributes["id"] for i in section.all("input") if "checked" in i.attributes]
    assert checked == ["curve-two_stream"]
    groups = section.one("details").one("table").rows()
    assert len(groups) == BINS
    assert sum(int(row[5]) for row in groups) == 600


def test_confusions_add_up(page, kinetics):
    section = page(kinetics).one(id="confusions")
    rows = section.one("table", class_="heat").rows()
    assert 2 <= len(rows) <= 15
    confusion = kinetics.scores["two_stream"].confusion
    for name, *cells, elsewhere, videos in rows:
        truth = kinetics.classes.index(name)
        shown = [kinetics.classes.index(other) for other, *_ in rows]
        assert [int(c or 0) for c in cells] == confusion[truth, shown].tolist()
        assert sum(int(c or 0) for c in cells) + int(elsewhere) == int(videos)
    pairs = section.one("table", class_="pairs").rows()
    expected = [
        [kinetics.classes[c.truth], kinetics.classes[c.predicted], str(c.videos)]
        for c in kinetics.most_confused(20)
    ]
    assert [[t, p, n.split(" of ")[0]] for t, p, n, _ in pairs] == expected


def test_confused_classes_stand_beside_their_partners():
    confusion = np.zeros((6, 6), np.int64)
    np.fill_diagonal(confusion, 9)
    confusion[0, 3], confusion[3, 0] = 2, 3  # 5: the first pair
    confusion[4, 5] = 4  # the second
    confusion[0, 2] = 3  # 2 joins its partner
    assert confused_classes(confusion, 5) == [0, 2, 3, 4, 5]
    assert confused_classes(confusion, 4) == [0, 3, 4, 5]
    assert confused_classes(confusion, 3) == [0, 3]
    assert confused_classes(np.diag([2, 2]), 15) == []


def test_every_class_with_videos_is_listed(page, kinetics):
    section = page(kinetics).one(id="classes")
    accuracies = kinetics.class_accuracies()
    expected = {
        name: [f"{100 * p.value:.1f}", f"{100 * p.low:.1f}–{100 * p.high:.1f}", videos]
        for name, (videos, p) in zip(kinetics.classes, accuracies, strict=True)
        if p is not None
    }
    rows = section.one("table").rows()
    assert {r[0]: [r[2], r[3], int(r[4].split()[-1])] for r in rows} == expected
    shares = [float(r[2]) for r in rows]
    assert shares == sorted(shares)
    assert "390 classes" in section.text and "10 classes have no video" in section.text
    first = next(section.one("tbody").all("tr"))
    assert float(first.one("rect").attributes["width"]) == shares[0]


def test_thumbnails_are_small_jpegs(page, kinetics):
    sizes = (256, 340), (454, 256), (2000, 100), (60, 80)
    frames = pictures(kinetics, *sizes)
    section = page(kinetics, thumbnails=frames).one(id="mistakes")
    images = [i.attributes for i in section.all("img")]
    decoded = [decode_picture(image["src"]) for image in images]
    # 160 wide, 240 high at most, never enlarged
    assert [d.shape[:2] for d in decoded] == [(120, 160), (240, 135), (240, 12), (60, 80)]
    assert [(int(i["height"]), int(i["width"])) for i in images] == [d.shape[:2] for d in decoded]
    assert [i["alt"] for i in images] == [f"Frame of {video}" for video in frames]
    assert f"{MISTAKES_SHOWN - 4} of them without a picture" in section.text


def test_thumbnails_keep_their_colours(page, kinetics):
    video = kinetics.surest_mistakes(1)[0].video
    red = np.full((90, 160, 3), (200, 30, 40), np.uint8)
    source = page(kinetics, thumbnails={video: red}).one("img").attributes["src"]
    color = decode_picture(source)[45, 80]
    assert np.abs(color.astype(int) - (200, 30, 40)).max() <= 3  # measured 1


def test_mistakes_without_pictures_say_so(page, kinetics):
    section = page(kinetics).one(id="mistakes")
    assert not list(section.all("img"))
    assert "Without pictures" in section.text
    cards = list(section.all("li"))
    mistakes = kinetics.surest_mistakes(MISTAKES_SHOWN)
    assert len(cards) == len(mistakes) == MISTAKES_SHOWN
    for card, m in zip(cards, mistakes, strict=True):
        assert [p.text for p in card.all("p")] == [
            kinetics.classes[m.predicted],
            f"{100 * m.probability:.1f} % sure",
            f"true class: {kinetics.classes[m.truth]}",
            m.video,
        ]


def test_a_mistake_is_never_quite_sure(page):
    logits = np.array([[0, 40], [0, 40]], np.float32)
    tree = page(make(("jump", "run"), [0, 1], {"rgb": logits}))
    assert "over 99.9 % sure" in tree.one(id="mistakes").text


def test_page_without_mistakes(page, flawless):
    tree = page(flawless)
    assert "8 videos found: 7 evaluated, 1 skipped." in tree.text
    assert "No video was taken for another class." in tree.one(id="confusions").text
    assert "None: every video’s best class is its own." in tree.one(id="mistakes").text
    assert not list(tree.one(id="calibration").all("input"))
    assert not list(tree.all("tr", class_="published"))
    assert "the predictions were read from files" in tree.one(id="provenance").text


def test_skipped_videos_and_their_limit(page, flawless, monkeypatch):
    skipped = tuple(Failure(f"s{i}", f"has {i} frames") for i in range(5))
    about = replace(flawless.predictions.about, skipped=skipped, found=12)
    evaluation = Evaluation(replace(flawless.predictions, about=about))
    table = page(evaluation).one(id="skipped").one("table")
    assert table.rows() == [[s.key, s.reason] for s in skipped]
    monkeypatch.setattr(evaluation_page, "SKIPPED_SHOWN", 3)
    section = page(evaluation).one(id="skipped")
    assert len(section.one("table").rows()) == 3
    assert "5 videos" in section.text and "and 2 more" in section.text


def test_provenance(page, kinetics):
    section = page(kinetics).one(id="provenance")
    lists = [
        list(zip([t.text for t in d.all("dt")], [t.text for t in d.all("dd")], strict=True))
        for d in section.all("dl")
    ]
    assert lists == [
        [
            ("Checkpoint", "rgb_imagenet_kinetics400"),
            ("Source", "the README's"),
            ("Weights, sha256", RGB_SHA256),
        ],
        [("Checkpoint", "flow_imagenet_kinetics400"), ("Weights, sha256", FLOW_SHA256)],
        [
            ("Time", "3,725.4 s (1:02:05)"),
            ("Videos", "600, 0.161 per second"),
            ("Device", "NVIDIA H200"),
            ("Processes", "2, each with batches of 16 and 12 workers"),
        ],
        [("torch", "2.9.1")],
    ]


def test_nothing_is_outside_the_page(page, kinetics, hostile):
    for evaluation in (kinetics, hostile):
        tree = page(evaluation, thumbnails=pictures(evaluation, (90, 160), (90, 160)))
        for element in tree.all():
            for name, value in element.attributes.items():
                if name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
                    assert value.startswith(("data:", "#")), f"{element.tag} {name}={value}"
                assert not name.startswith("on") and name != "style", f"{element.tag} {name}"
        ids = [e.attributes["id"] for e in tree.all() if "id" in e.attributes]
        assert len(ids) == len(set(ids))
        for link in tree.all("a"):
            assert link.attributes["href"].removeprefix("#") in ids
        style = tree.one("style").children[0]
        assert "url(" not in style and "@import" not in style


def test_policy_lets_only_the_own_style_and_script_run(page, hostile):
    tree = page(hostile)
    assert policy(tree) == {
        "default-src": "'none'",
        "style-src": inline_hash(tree, "style"),
        "script-src": inline_hash(tree, "script"),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_hostile_names_are_text(page, hostile, flawless):
    # the parser checks that nothing closes what it did not open
    script = page(flawless).one("script").children
    tree = page(hostile, thumbnails=pictures(hostile, (90, 160)))
    assert tree.one("script").children == script
    assert {e.tag for e in tree.one(id="classes").all()} == {
        e.tag for e in page(flawless).one(id="classes").all()
    }
    listed = {row[0] for row in tree.one(id="class-table").rows()}
    assert listed == {" ".join(name.split()) for name in HOSTILE}
    assert tree.one("h1").text == HOSTILE[0]
    assert tree.one(id="skipped").one("table").rows() == [[HOSTILE[1], HOSTILE[3]]]
    video = hostile.surest_mistakes(1)[0].video
    assert tree.one("img").attributes["alt"] == f"Frame of {video}"


def test_half_a_surrogate_pair_is_no_reason_to_fail(page, flawless):
    about = replace(flawless.predictions.about, dataset="g\ud83dm")
    tree = page(Evaluation(replace(flawless.predictions, about=about)))
    assert tree.one("h1").text == "g?m"


def test_a_page_appears_whole_or_not_at_all(tmp_path, kinetics):
    location = tmp_path / "page.html"
    location.write_text("before")
    broken = {kinetics.surest_mistakes(1)[0].video: np.zeros((0, 0, 3), np.uint8)}
    with pytest.raises(Exception):  # noqa: B017  a caller's mistake; only the file matters here
        write_page(kinetics, location, thumbnails=broken)
    with pytest.raises(OSError):
        write_page(kinetics, location / "below" / "page.html")
    assert location.read_text() == "before"
    assert list(tmp_path.iterdir()) == [location]


def test_a_page_is_small(tmp_path, kinetics):
    """Whatever the number of videos: the names of the classes and the mistakes make its size."""
    location = tmp_path / "page.html"
    write_page(kinetics, location, thumbnails=pictures(kinetics, *[(256, 340)] * MISTAKES_SHOWN))
    assert location.stat().st_size < 1_000_000  # measured 0.7 MB; noise is a JPEG's worst case
