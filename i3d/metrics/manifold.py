"""How two sets of features lie among each other: precision, recall, and nearest neighbours.

    real (N, D) --distance to the k-th nearest of its own--> N spheres: where real ones lie
    fake (M, D) --> precision: the share within any of them; recall: the same with the sets swapped

Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models" (arXiv
1904.06991). Distances are Euclidean, in float64, from the differences themselves: the usual
|x|^2 + |y|^2 - 2 x'y would leave rounding where two rows are equal, and a sphere around rows that
stand there several times has the radius 0.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from i3d.errors import I3DError

NEIGHBOURS = 3  # k, of the paper
_BLOCK_ROWS = 2048  # a block of distances has 32 MiB
_LARGEST = 1e150  # of a feature; its square is still finite


class PrecisionRecall(NamedTuple):
    """How much of each set lies where the other does.

    Attributes:
        precision: share of the fake samples that lie among the real ones: are they plausible?
        recall: share of the real samples that lie among the fake ones: is everything covered?
        neighbours: k; a sample's sphere reaches to its k-th nearest of the same set.
    """

    precision: float
    recall: float
    neighbours: int


class Nearest(NamedTuple):
    """For every row of one set, its nearest of the other.

    Attributes:
        distances: float64 (N,).
        places: int64 (N,): which row of the other set that is, the first of equal ones.
    """

    distances: np.ndarray
    places: np.ndarray


def precision_recall(
    real: np.ndarray, fake: np.ndarray, *, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Improved precision and recall; compares only with that of as many samples and the same k.

    Args:
        real: features, float (N, D), N more than `neighbours`.
        fake: float (M, D), M more than `neighbours`.
        neighbours: k, at least 1.

    Raises:
        I3DError: other shapes, too few rows, NaN.
    """
    real, fake = _check(real, fake)
    radii = [_radii(rows, neighbours) for rows in (real, fake)]
    covered = [np.zeros(len(rows), bool) for rows in (real, fake)]
    for one, other, distances in _blocks(real, fake):
        covered[0][one] |= (distances <= radii[1][None, other]).any(1)
        covered[1][other] |= (distances <= radii[0][one, None]).any(0)
    return PrecisionRecall(float(covered[1].mean()), float(covered[0].mean()), neighbours)


def neighbour_distances(features: np.ndarray, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Distance of every row to its k-th nearest other row of the same set: float64 (N,).

    Args:
        features: float (N, D), N more than `neighbours`.
        neighbours: k, at least 1. Equal rows count as neighbours, at a distance of 0.

    Raises:
        I3DError: another shape, too few rows, NaN.
    """
    return _radii(_check(features)[0], neighbours)


def nearest_rows(features: np.ndarray, others: np.ndarray) -> Nearest:
    """For every row, the nearest one of the other set.

    Args:
        features: float (N, D).
        others: float (M, D).

    Raises:
        I3DError: other shapes, no rows, NaN.
    """
    features, others = _check(features, others)
    least = np.full(len(features), np.inf)
    places = np.zeros(len(features), np.int64)
    for one, other, distances in _blocks(features, others):
        found = distances.argmin(1)
        values = distances[np.arange(len(found)), found]
        closer = values < least[one]  # not <=: the first of equal ones
        least[one] = np.where(closer, values, least[one])
        places[one] = np.where(closer, found + other.start, places[one])
    return Nearest(least, places)


def _radii(rows: np.ndarray, neighbours: int) -> np.ndarray:
    if neighbours < 1:
        raise I3DError(f"{neighbours} nearest neighbours; at least 1 is needed")
    if len(rows) <= neighbours:
        raise I3DError(
            f"{len(rows)} features have no {neighbours} nearest neighbours each; at least "
            f"{neighbours + 1} are needed"
        )
    nearest = np.full((len(rows), neighbours), np.inf)
    for one, other, distances in _blocks(rows, rows):
        if one == other:
            np.fill_diagonal(distances, np.inf)  # no row is its own neighbour
        candidates = np.concatenate([nearest[one], distances], axis=1)
        nearest[one] = np.partition(candidates, neighbours - 1, axis=1)[:, :neighbours]
    return nearest.max(1)


def _check(*sets: np.ndarray) -> list[np.ndarray]:
    arrays = [np.asarray(features, np.float64) for features in sets]
    if any(x.ndim != 2 or not x.size or x.shape[1] != arrays[0].shape[-1] for x in arrays):
        shapes = " and ".join(str(x.shape) for x in arrays)
        raise I3DError(f"features of shape {shapes}; (N, D) with N and D at least 1 is needed")
    # the negation: NaN compares with nothing
    if not all(np.abs(x).max() < _LARGEST for x in arrays):
        raise I3DError("features hold NaN or are too large; no distance can be told from them")
    return arrays


def _blocks(rows: np.ndarray, others: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """All distances, a block at a time: which rows, which others, float64 (rows, others)."""
    import torch  # its cdist uses all cores; a second to import

    one, other = (torch.from_numpy(np.ascontiguousarray(x)) for x in (rows, others))
    for i in range(0, len(one), _BLOCK_ROWS):
        for j in range(0, len(other), _BLOCK_ROWS):
            a, b = slice(i, i + _BLOCK_ROWS), slice(j, j + _BLOCK_ROWS)
            block = torch.cdist(one[a], other[b], compute_mode="donot_use_mm_for_euclid_dist")
            yield a, b, block.numpy()
