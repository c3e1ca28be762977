"""Precision, recall and nearest neighbours against scikit-learn, and where they have no meaning."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from i3d.errors import I3DError
from i3d.metrics import manifold
from i3d.metrics.manifold import nearest_rows, neighbour_distances, precision_recall


def features(count, seed, dimensions=20, *, shift=0.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dimensions)) + shift).astype(np.float32)


def tree(rows, neighbours):
    # kd_tree: scikit-learn's brute force computes |x|^2 + |y|^2 - 2 x'y
    found = NearestNeighbors(n_neighbors=neighbours, algorithm="kd_tree")
    return found.fit(rows.astype(np.float64))


def their_radii(rows, k):
    """Of the k + 1 nearest the first is the row itself."""
    return tree(rows, k + 1).kneighbors(rows.astype(np.float64))[0][:, k]


def their_share(rows, among, k):
    """Share of rows that lie within the sphere of any row of `among`."""
    radii = their_radii(among, k)
    distances, places = tree(among, len(among)).kneighbors(rows.astype(np.float64))
    return (distances <= radii[places]).any(1).mean()


DUPLICATES = np.repeat(features(9, 5), [1, 2, 3, 4, 5, 6, 7, 8, 9], axis=0)
CASES = {
    "alike": (features(150, 0), features(90, 1)),
    "shifted": (features(60, 0), features(80, 1, shift=0.7)),
    "apart": (features(40, 0), features(40, 1, shift=50.0)),
    "one dimension": (features(70, 0, 1), features(30, 1, 1)),
    "duplicates": (DUPLICATES, np.concatenate([DUPLICATES[::3], features(9, 6)])),
    "equal": (DUPLICATES, DUPLICATES[::-1]),
    "a large mean": (features(50, 0) * 1e-3 + 1e4, features(50, 1) * 1e-3 + 1e4),
}


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("case", CASES)
def test_precision_and_recall_are_scikit_learns(case, k):
    real, fake = CASES[case]
    found = precision_recall(real, fake, neighbours=k)
    assert found == (their_share(fake, real, k), their_share(real, fake, k), k)


@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_scikit_learns(case):
    real, fake = CASES[case]
    # measured: 4e-16 relative
    assert neighbour_distances(real) == pytest.approx(their_radii(real, 3), rel=1e-14)
    theirs = tree(real, 1).kneighbors(fake.astype(np.float64))[0][:, 0]
    found = nearest_rows(fake, real)
    assert found.distances == pytest.approx(theirs, rel=1e-14)
    apart = np.linalg.norm(fake.astype(float) - real.astype(float)[found.places], axis=1)
    assert apart == pytest.approx(theirs, rel=1e-14)


def test_blocks_change_nothing(monkeypatch):
    """With the last block smaller than the number of neighbours, and duplicates across blocks."""
    real, fake = CASES["duplicates"]
    whole = precision_recall(real, fake), neighbour_distances(real), nearest_rows(fake, real)
    monkeypatch.setattr(manifold, "_BLOCK_ROWS", 11)
    assert len(real) % 11 == 1 and len(fake) > 11
    assert precision_recall(real, fake) == whole[0]
    assert (neighbour_distances(real) == whole[1]).all()
    again = nearest_rows(fake, real)
    assert (again.distances == whole[2].distances).all()
    assert (again.places == whole[2].places).all()


def test_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    fake = np.array([[1.5], [-1.1], [18.1]])
    # reach: 1 around 0, 1 and 2; 8 around 10: 18.1 is just outside, and so is -1.1
    assert precision_recall(real, fake, neighbours=1).precision == pytest.approx(1 / 3)
    assert precision_recall(real, fake[:1].repeat(2, 0), neighbours=1).precision == 1
    assert nearest_rows(fake, real).places.tolist() == [1, 0, 3]


def test_equal_sets_cover_each_other():
    """Rounding must not push a row out of a sphere on whose surface it lies."""
    rows = features(300, 3, 400) * 7
    assert precision_recall(rows, rows[::-1]) == (1, 1, 3)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (features(3, 0), features(9, 1), r"3 features have no 3 nearest.*at least 4"),
        (features(9, 0), features(1, 1), r"1 features have no 3 nearest.*at least 4"),
        (features(9, 0), features(0, 1), r"\(9, 20\) and \(0, 20\)"),
        (features(9, 0), features(9, 1, 19), r"\(9, 20\) and \(9, 19\)"),
        (features(9, 0)[0], features(9, 1), r"shape \(20,\)"),
        (features(9, 0), features(9, 1) * np.nan, "NaN"),
        (features(9, 0), features(9, 1).astype(np.float64) * 1e200, "too large"),
    ],
)
def test_where_there_is_no_answer(real, fake, message):
    with pytest.raises(I3DError, match=message):
        precision_recall(real, fake)


def test_no_neighbours_have_no_meaning():
    with pytest.raises(I3DError, match="0 nearest neighbours"):
        precision_recall(features(9, 0), features(9, 1), neighbours=0)


def test_one_row_is_the_nearest_of_all():
    one = features(1, 0)
    assert nearest_rows(features(5, 1), one).places.tolist() == [0] * 5
    with pytest.raises(I3DError, match=r"\(0, 20\)"):
        nearest_rows(one, features(0, 1))
