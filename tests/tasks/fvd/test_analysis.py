"""What is computed beside a distance, from features whose answers are known otherwise."""

import json

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from i3d.errors import I3DError, UsageError
from i3d.metrics.frechet import (
    Moments,
    bootstrap,
    class_distances,
    curve,
    endless,
    kernel_distance,
)
from i3d.metrics.manifold import precision_recall
from i3d.tasks.fvd.analysis import Analysis, LengthPoint, analyse
from i3d.tasks.fvd.options import Beside
from i3d.tasks.fvd.protocols import PROTOCOLS
from i3d.tasks.fvd.result import Tally, compute_result

CLASSES = ("archery", "bowling", "crying")


def moments(rows, *, keep=True):
    made = Moments(rows.shape[1], keep=keep)
    made.update(rows)
    return made


@pytest.fixture(scope="module")
def rows():
    """Two sets of six dimensions; the fakes are the farther, the later they come."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 6)), rng.normal(size=(36, 6))
    return real, fake * np.linspace(0.2, 6, 36)[:, None]


@pytest.fixture(scope="module")
def keys():
    return tuple([f"{CLASSES[i % 3]}/v{i}" for i in range(count)] for count in (40, 36))


@pytest.fixture(scope="module")
def everything(rows, keys):
    return analyse(
        *map(moments, rows),
        Beside(kvd=True, precision_recall=True, interval=True, per_class=True),
        points=True,
        extremes=4,
        keys=keys,
        lengths=[LengthPoint(16, 12.5, 40, 36), LengthPoint(32, 20.25, 38, 36)],
    )


def test_every_number_is_its_functions(everything, rows, keys):
    assert everything.kvd == kernel_distance(*rows)
    assert everything.precision_recall == precision_recall(*rows)
    assert everything.points == curve(*rows)
    assert everything.endless == endless(everything.points)
    assert everything.interval == bootstrap(*map(moments, rows))
    named = [[key.split("/")[0] for key in side] for side in keys]
    assert everything.classes == class_distances(*rows, *named)
    assert [c.name for c in everything.classes] == list(CLASSES)


def test_the_nearest_and_the_farthest(everything, rows, keys):
    real, fake = rows
    distances, places = NearestNeighbors(n_neighbors=1).fit(real).kneighbors(fake)
    order = np.argsort(distances[:, 0])
    for found, chosen in ((everything.nearest, order[:4]), (everything.farthest, order[:-5:-1])):
        assert [v.key for v in found] == [keys[1][i] for i in chosen]
        assert [v.real for v in found] == [keys[0][i] for i in places[chosen, 0]]
        assert [v.distance for v in found] == pytest.approx(distances[chosen, 0], rel=1e-12)


def test_no_video_is_near_and_far(rows):
    found = analyse(*map(moments, rows), extremes=100)
    nearest, farthest = ({v.key for v in side} for side in (found.nearest, found.farthest))
    assert len(nearest) == len(farthest) == 18 and not nearest & farthest
    assert nearest | farthest == {str(i) for i in range(36)}  # without keys, numbers


def test_the_divisor_is_the_protocols(rows, keys):
    named = [[key.split("/")[0] for key in side] for side in keys]
    found = analyse(
        *map(moments, rows),
        Beside(interval=True, per_class=True),
        unbiased=False,
        points=True,
        keys=keys,
    )
    assert found.points == curve(*rows, unbiased=False) != curve(*rows)
    assert found.interval == bootstrap(*map(moments, rows), unbiased=False)
    assert found.classes == class_distances(*rows, *named, unbiased=False)


def test_nothing_is_computed_that_was_not_asked_for(rows):
    assert analyse(*map(moments, rows)) == Analysis()
    assert str(Analysis()) == ""


def test_the_json(everything):
    report = json.loads(json.dumps(everything.as_dict(), allow_nan=False))
    assert report["precision_recall"] == {
        "precision": everything.precision_recall.precision,
        "recall": everything.precision_recall.recall,
        "neighbours": 3,
    }
    assert report["lengths"][1] == {"frames": 32, "distance": 20.25, "real": 38, "fake": 36}
    assert report["classes"][0]["name"] == "archery"
    assert list(report["nearest"][0]) == ["key", "distance", "real"]
    assert report["interval"] == [everything.interval.low, everything.interval.high]
    empty = json.loads(json.dumps(Analysis().as_dict()))
    assert set(empty) == set(report)
    assert not any(empty.values())


def test_the_terminal(everything):
    text = str(everything)
    assert f"\nprecision {everything.precision_recall.precision:.4f}, recall " in text
    assert "\n16 frames: 12.5 (40 real, 36 fake)\n32 frames: 20.25 (38 real, 36 fake)\n" in text
    assert "3 classes, the most distant first:\n" in text
    worst = max(everything.classes, key=lambda c: c.distance)
    assert f"first:\n  {worst.name}: {worst.distance:.6g} ({worst.real} real, " in text
    assert "warning: classes of as few as 12 videos: under 256" in text
    first = everything.nearest[0]
    assert f"ones:\n  {first.distance:.6g} {first.key}: {first.real}\n" in text


def test_many_classes_are_cut_short(rows):
    keys = tuple([f"{i % 17}/v{i}" for i in range(count)] for count in (40, 36))
    text = str(analyse(*map(moments, rows), Beside(per_class=True), keys=keys))
    assert "17 classes" in text and "  and 7 more\n" in text
    assert "warning: classes of as few as 2 videos" in text


def test_classes_without_a_distance_are_listed_with_the_reason(rows):
    keys = ["a/1", *["b/2"] * 39], ["c/3", *["b/4"] * 35]
    found = analyse(*map(moments, rows), Beside(per_class=True), keys=keys)
    assert [(c.name, c.distance is None) for c in found.distant_classes] == [
        ("b", False),
        ("a", True),
        ("c", True),
    ]
    assert "\n  a: 1 real and 0 fake; a covariance needs at least 2\n" in str(found)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (None, "the videos have no names"),
        ((["a/1"] * 40, ["a/1"] * 35 + ["v7"]), "fake video 'v7' has no class"),
        ((["/1"] * 40, ["a/1"] * 36), "real video '/1' has no class"),
        ((["a/"] * 40, ["a/1"] * 36), "real video 'a/' has no class"),
    ],
)
def test_videos_without_classes(rows, keys, message):
    with pytest.raises(UsageError, match=message):
        analyse(*map(moments, rows), Beside(per_class=True), keys=keys)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"beside": Beside(kvd=True)}, "kernel distance"),
        ({"points": True}, "curve"),
        ({"beside": Beside(precision_recall=True)}, "precision and recall"),
        ({"beside": Beside(per_class=True)}, "distances of classes"),
        ({"extremes": 3}, "nearest and farthest videos"),
        ({"beside": Beside(interval=True)}, "interval"),
    ],
)
def test_what_needs_every_video_says_so(asked, name):
    """Rows of which there are more than dimensions are added up unless they are kept."""
    rng = np.random.default_rng(0)
    kept, summed = (moments(rng.normal(size=(300, 2)), keep=keep) for keep in (True, False))
    assert summed.rows is None
    with pytest.raises(UsageError, match=f"need the features of every video: {name};"):
        analyse(summed, summed, **asked)
    if name == "interval":
        assert analyse(kept, summed, **asked).interval == bootstrap(kept, summed)
    else:
        with pytest.raises(UsageError, match=name):
            analyse(kept, summed, **asked)


def test_too_few_for_neighbours(rows):
    with pytest.raises(I3DError, match="3 features have no 3 nearest neighbours"):
        analyse(moments(rows[0]), moments(rows[1][:3]), Beside(precision_recall=True))


def test_a_result_of_large_sets_has_an_interval_if_asked():
    rng = np.random.default_rng(0)
    sets = moments(rng.normal(size=(256, 4))), moments(rng.normal(size=(300, 4)) + 1)
    given = (Tally(256, "files", 256), Tally(300, "files", 300)), PROTOCOLS["google-2018"]
    plain = compute_result(sets, *given, None, "fp32")
    assert plain.analysis == Analysis() and plain.warning is None
    assert str(plain) == plain.line
    asked = compute_result(sets, *given, None, "fp32", Beside(interval=True, kvd=True))
    interval = bootstrap(*sets)
    assert asked.as_dict()["interval"] == [interval.low, interval.high]
    assert asked.value == plain.value and asked.warning is None
    first, second, third = str(asked).split("\n")
    assert first == plain.line
    assert second.startswith(f"95 % bootstrap interval {interval.low:.4g} to {interval.high:.4g}")
    assert third.startswith("KVD ")
