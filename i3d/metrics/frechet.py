"""Distances between two sets of features: Fréchet's between Gaussians, and the kernel distance.

    features (N, D) --update, merge--> Moments --factor--> distance

Fréchet's distance of N(mu1, C1) and N(mu2, C2) is

    |mu1 - mu2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)

(Dowson and Landau 1982). With any A, B such that C1 = A'A and C2 = B'B, the last trace is the sum
of the singular values of AB': symmetric in the two sets, never complex, and without the roots of
eigenvalues that are rounding, where ``scipy.linalg.sqrtm(C1 @ C2)`` loses half of the digits (2e-7
for 300 samples of 400 dimensions; older versions diverged). Everything is float64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from i3d.errors import I3DError

FEW = 256  # samples; below, the distance is mostly bias and noise, and the rows are kept
MAX_DIMENSIONS = 1 << 14  # a covariance of 2 GiB
REPLICATES = 200
SUBSETS = 10  # drawn for each count of a curve
# Most that rounding may do to a covariance: what float32 sums leave is below 1e-5.
_ASYMMETRY = 1e-3  # share of the largest entry
_NEGATIVE = 1e-4  # share of the largest eigenvalue
_KERNEL_ROWS = 1024  # a block of the kernel matrix has 8 MiB


class Moments:
    """Mean and covariance of features, in memory that does not grow with their number.

    As long as the rows need no more room than a covariance (or are fewer than `FEW`) they are kept
    as they are, for with fewer samples than dimensions the singular values of the centred rows are
    exact where eigenvalues of their covariance are not. Then they are added up: mean and centred
    scatter, merged by Chan's formula, which loses nothing to a large mean.

    Args:
        dimensions: number D of features of a sample.
        keep: whether every row is kept, which the kernel distance and the curve need.

    Attributes:
        count: number N of samples so far.
    """

    def __init__(self, dimensions: int, *, keep: bool = False) -> None:
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise I3DError(f"features of {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are taken")
        self.dimensions, self.keep = dimensions, keep
        self.count = 0
        self._rows: list[np.ndarray] | None = []
        self._mean = np.zeros(dimensions)
        self._scatter = np.zeros((dimensions, dimensions))

    @classmethod
    def from_sums(cls, dimensions: int) -> Self:
        """No samples yet, and none whose row will be kept."""
        moments = cls(dimensions)
        moments._rows = None
        return moments

    def update(self, features: np.ndarray) -> None:
        """Add a batch: float (N, D).

        Raises:
            I3DError: another shape or type, NaN or infinity.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise I3DError(f"features of shape {features.shape}, not (N, {self.dimensions})")
        if not np.issubdtype(features.dtype, np.floating):
            raise I3DError(f"features are {features.dtype}; they must be floats")
        batch = features.astype(np.float64)
        if not np.isfinite(batch).all():
            raise I3DError("features hold NaN or infinity; no distance can be told from them")
        if not len(batch):
            return
        if self._rows is None:
            self._add(batch)
        else:
            self._rows.append(batch)
        self.count += len(batch)
        self._compact()

    def merge(self, other: "Moments") -> None:
        """Add what another process has seen.

        Raises:
            I3DError: features of another number of dimensions.
        """
        if other.dimensions != self.dimensions:
            raise I3DError(
                f"features of {other.dimensions} and {self.dimensions} dimensions cannot be merged"
            )
        if other._rows is not None:
            for rows in list(other._rows):
                self.update(rows)
            return
        if self._rows is not None:
            self._sum_rows()
        if other.count:
            self._absorb(other.count, other._mean, other._scatter, before=self.count)
            self.count += other.count

    @property
    def rows(self) -> np.ndarray | None:
        """Float64 (N, D), in the order of the updates; None once they were added up."""
        if self._rows is None:
            return None
        return np.concatenate([np.zeros((0, self.dimensions)), *self._rows])

    @property
    def mean(self) -> np.ndarray:
        """Float64 (D,)."""
        rows = self.rows
        self._check(1)
        return self._mean.copy() if rows is None else rows.mean(0)

    def covariance(self, *, unbiased: bool = True) -> np.ndarray:
        """Float64 (D, D), symmetric, divided by N - 1, or by N where it is not to be unbiased.

        Raises:
            I3DError: fewer than two features.
        """
        rows = self.rows
        self._check(2)
        centred = None if rows is None else rows - rows.mean(0)
        scatter = self._scatter if centred is None else centred.T @ centred
        return scatter / (self.count - unbiased)

    def factor(self, *, unbiased: bool = True) -> np.ndarray:
        """Float64 (r, D): A with A'A the covariance and r the smaller of N and D, at most.

        Raises:
            I3DError: fewer than two features.
        """
        self._check(2)
        rows = self.rows
        if rows is not None and len(rows) <= self.dimensions:
            return (rows - rows.mean(0)) / math.sqrt(self.count - unbiased)
        return _factor(self.covariance(unbiased=unbiased))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays: ``rows``, or ``count``, ``mean`` and ``scatter``."""
        rows = self.rows
        if rows is not None:
            return {"rows": rows}
        return {"count": np.array(self.count), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], *, keep: bool = False) -> Self:
        """What `to_arrays` gave."""
        if "rows" in arrays:
            moments = cls(arrays["rows"].shape[1], keep=keep)
            moments.update(arrays["rows"])
            return moments
        moments = cls(len(arrays["mean"]), keep=keep)
        moments._rows, moments.count = None, int(arrays["count"])
        moments._mean, moments._scatter = arrays["mean"].copy(), arrays["scatter"].copy()
        return moments

    def _check(self, least: int) -> None:
        if self.count < least:
            raise I3DError(f"{self.count} features; at least {least} are needed")

    def _compact(self) -> None:
        if self._rows is None or self.keep or self.count <= max(self.dimensions, FEW):
            return
        self._sum_rows()

    def _sum_rows(self) -> None:
        rows, self._rows = self.rows, None
        assert rows is not None
        count, self.count = self.count, 0
        if len(rows):
            self._add(rows)
        self.count = count

    def _add(self, batch: np.ndarray) -> None:
        mean = batch.mean(0)
        centred = batch - mean
        self._absorb(len(batch), mean, centred.T @ centred, before=self.count)

    def _absorb(self, count: int, mean: np.ndarray, scatter: np.ndarray, *, before: int) -> None:
        total = before + count
        apart = mean - self._mean if before else np.zeros(self.dimensions)
        self._scatter += scatter + np.outer(apart, apart) * (before * count / total)
        self._mean = self._mean + apart * (count / total) if before else mean.copy()


def frechet_distance(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians.

        |mu1 - mu2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)

    >>> frechet_distance([0.0, 0.0], [[1, 0], [0, 1]], [3.0, 4.0], [[4, 0], [0, 1]])
    26.0

    Args:
        mu1: mean (D,) of the first.
        cov1: covariance (D, D): symmetric, without negative eigenvalues but for rounding.
        mu2: mean (D,) of the second.
        cov2: covariance (D, D) of the second.

    Returns:
        a number of at least 0, computed in float64.

    Raises:
        I3DError: shapes that do not fit, NaN, or a matrix that is no covariance.
    """
    means = [np.asarray(mu, np.float64) for mu in (mu1, mu2)]
    factors = [_factor(np.asarray(cov, np.float64)) for cov in (cov1, cov2)]
    if means[0].ndim != 1 or not (
        means[0].shape == means[1].shape == factors[0].shape[1:] == factors[1].shape[1:]
    ):
        shapes = [np.shape(x) for x in (mu1, cov1, mu2, cov2)]
        raise I3DError(
            f"means and covariances of shapes {', '.join(map(str, shapes))}; (D,), (D, D), (D,) "
            "and (D, D) are needed"
        )
    return _distance(means[0], factors[0], means[1], factors[1])


def distance(one: Moments, other: Moments, *, unbiased: bool = True) -> float:
    """`frechet_distance` of two sets; of fewer samples than dimensions without a covariance.

    Args:
        one: moments of at least two samples.
        other: moments of at least two samples.
        unbiased: whether covariances are divided by N - 1, else by N.
    """
    if one.dimensions != other.dimensions:
        raise I3DError(f"features of {one.dimensions} and {other.dimensions} dimensions")
    return _distance(
        one.mean, one.factor(unbiased=unbiased), other.mean, other.factor(unbiased=unbiased)
    )


def _distance(mu1: np.ndarray, a: np.ndarray, mu2: np.ndarray, b: np.ndarray) -> float:
    apart = mu1 - mu2
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum() if len(a) and len(b) else 0.0
    value = float(apart @ apart + (a * a).sum() + (b * b).sum() - 2 * shared)
    if not math.isfinite(value):
        raise I3DError(f"the distance is {value}: means or covariances hold NaN or are too large")
    return max(0.0, value)  # rounding leaves -1e-13 of equal sets


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A (r, D) with A'A the covariance, r its numerical rank."""
    shape = covariance.shape
    if len(shape) != 2 or shape[0] != shape[1] or not 1 <= shape[0] <= MAX_DIMENSIONS:
        raise I3DError(f"a covariance of shape {shape}; it must be square")
    if not np.isfinite(covariance).all():
        raise I3DError("a covariance holds NaN or infinity")
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * np.abs(covariance).max():
        raise I3DError("a covariance is not symmetric")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -_NEGATIVE * max(values[-1], 0.0):
        raise I3DError(f"a covariance has the negative eigenvalue {values[0]:g}; it is none")
    # What eigh computes below this is rounding, whose square root would be none.
    real = values > shape[0] * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return np.sqrt(values[real])[:, None] * vectors[:, real].T


# --- how sure it is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """Where a distance would lie if other samples, as many, had been drawn.

    Attributes:
        low: lower end, at least 0.
        high: upper end.
        replicates: number of times that the samples were drawn again.
    """

    low: float
    high: float
    replicates: int


def bootstrap(
    one: Moments,
    other: Moments,
    *,
    unbiased: bool = True,
    replicates: int = REPLICATES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Interval of a distance from samples that are drawn again, with replacement.

    A set whose rows were added up is large and stays as it is. Drawing with replacement repeats
    samples, which raises every replicate's distance; so only the replicates' spread is used, around
    their median, and put around the distance itself. The bias of few samples is not in it.

    Raises:
        I3DError: neither set has rows.
    """
    if one.rows is None and other.rows is None:
        raise I3DError("the rows of both sets were added up; there is nothing to draw from")
    rng = np.random.default_rng(seed)
    distances = np.array(
        [
            distance(_redraw(one, rng), _redraw(other, rng), unbiased=unbiased)
            for _ in range(replicates)
        ]
    )
    tail = (1 - confidence) / 2
    low, middle, high = np.quantile(distances, [tail, 0.5, 1 - tail]).tolist()
    value = distance(one, other, unbiased=unbiased)
    return Interval(max(0.0, value + low - middle), value + high - middle, replicates)


def _redraw(moments: Moments, rng: np.random.Generator) -> Moments:
    rows = moments.rows
    if rows is None:
        return moments
    again = Moments(moments.dimensions, keep=True)
    again.update(rows[rng.integers(0, len(rows), len(rows))])
    return again


@dataclass(frozen=True)
class CurvePoint:
    """The distance of subsets of so many samples.

    Attributes:
        count: samples of each set.
        mean: mean distance of the subsets that were drawn.
        lowest: smallest distance among them.
        highest: largest distance among them.
    """

    count: int
    mean: float
    lowest: float
    highest: float


def curve(
    one: np.ndarray,
    other: np.ndarray,
    *,
    unbiased: bool = True,
    counts: Sequence[int] | None = None,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> tuple[CurvePoint, ...]:
    """How the distance falls as the sets grow, from random subsets without repetition.

    Args:
        one: features, float (N, D).
        other: float (M, D).
        counts: 2 to the smaller of N and M; default: that one, halved while at least 16.
        subsets: pairs of subsets for each count.
    """
    most = min(len(one), len(other))
    if counts is None:
        halves = range(max(1, (most // 16).bit_length()))
        counts = sorted(max(2, most >> i) for i in halves)
    if not counts or min(counts) < 2 or max(counts) > most:
        raise I3DError(f"counts {list(counts)} must lie between 2 and {most}, the smaller set")
    rng = np.random.default_rng(seed)
    points = []
    for count in counts:
        # The whole of both sets can be drawn in one way only.
        times = 1 if len(one) == len(other) == count else subsets
        values = []
        for _ in range(times):
            pair = [Moments(rows.shape[1], keep=True) for rows in (one, other)]
            for moments, rows in zip(pair, (one, other), strict=True):
                moments.update(rows[np.sort(rng.permutation(len(rows))[:count])])
            values.append(distance(pair[0], pair[1], unbiased=unbiased))
        points.append(CurvePoint(count, float(np.mean(values)), min(values), max(values)))
    return tuple(points)


def endless(points: Sequence[CurvePoint]) -> float:
    """The distance of endlessly many samples: the line in 1 / count through a curve, at 0.

    The bias of the distance is about proportional to 1 / N once N is above D (Chong and Forsyth,
    "Effectively Unbiased FID", arXiv 1911.07023), so below that it is a rough guess. The upper half
    of the counts is used, at least two; it may be negative for sets that are alike.
    """
    if len(points) < 2:
        raise I3DError("a line needs two counts; the sets are too small")
    used = points[-max(2, (len(points) + 1) // 2) :]
    _, at_zero = np.polyfit([1 / p.count for p in used], [p.mean for p in used], 1)
    return float(at_zero)


# --- class by class -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassDistance:
    """The distance of one class's samples.

    Attributes:
        name: the class.
        real: its samples in the one set.
        fake: its samples in the other.
        distance: None where a side has fewer than two.
        reason: why there is no distance; "" where there is.
    """

    name: str
    real: int
    fake: int
    distance: float | None
    reason: str = ""


def class_distances(
    real: np.ndarray,
    fake: np.ndarray,
    real_classes: Sequence[str],
    fake_classes: Sequence[str],
    *,
    unbiased: bool = True,
) -> tuple[ClassDistance, ...]:
    """Fréchet's distance of every class by itself, by name.

    A class has far fewer samples than the set, so its distance is mostly bias: it is above that of
    the whole set, and compares only with that of a class of as many samples, or of the same class
    and as many samples of another model.

    Args:
        real: features, float (N, D).
        fake: float (M, D).
        real_classes: N names, one a row.
        fake_classes: M names.
        unbiased: whether covariances are divided by N - 1, else by N.

    Raises:
        I3DError: other shapes, or another number of names.
    """
    sides = [
        (np.asarray(features), np.asarray(classes, dtype=object))
        for features, classes in ((real, real_classes), (fake, fake_classes))
    ]
    (x, _), (y, _) = sides
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise I3DError(f"features of shapes {x.shape} and {y.shape}; (N, D) and (M, D) are needed")
    for features, classes in sides:
        if len(features) != len(classes):
            raise I3DError(f"{len(features)} features with {len(classes)} classes; one a row")
    found = []
    for name in sorted({*real_classes, *fake_classes}):
        one, other = (features[classes == name] for features, classes in sides)
        few = [
            f"{len(rows)} {side}"
            for side, rows in (("real", one), ("fake", other))
            if len(rows) < 2
        ]
        value, reason = None, ""
        if few:
            reason = f"{' and '.join(few)}; a covariance needs at least 2"
        else:
            value = distance(_moments(one), _moments(other), unbiased=unbiased)
        found.append(ClassDistance(name, len(one), len(other), value, reason))
    return tuple(found)


def _moments(rows: np.ndarray) -> Moments:
    moments = Moments(rows.shape[1], keep=True)
    moments.update(rows)
    return moments


# --- the kernel distance --------------------------------------------------------------------------


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel ``(x'y / D + 1)^3``, unbiased.

    The kernel of KID (Bińkowski et al., arXiv 1801.01401), over all pairs of the two sets: the
    U-statistic, where KID averages it over random subsets of 1000. Its expectation is the true
    distance whatever N, so it may be negative for sets that are alike. That holds for independent
    sets: of samples and what was made of them one by one, such as reconstructions, it is too low.

    Args:
        one: features, float (N, D), N at least 2.
        other: float (M, D), M at least 2.
    """
    x, y = (np.asarray(features, np.float64) for features in (one, other))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise I3DError(f"features of shapes {x.shape} and {y.shape}; (N, D) and (M, D) are needed")
    within = [
        (_kernel_sum(z, z) - float(_kernel(np.einsum("nd,nd->n", z, z), z.shape[1]).sum()))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    value = within[0] + within[1] - 2 * _kernel_sum(x, y) / (len(x) * len(y))
    if not math.isfinite(value):
        raise I3DError(f"the kernel distance is {value}: features hold NaN or are too large")
    return value


def _kernel(products: np.ndarray, dimensions: int) -> Any:
    return (products / dimensions + 1) ** 3


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the kernel over all pairs, a block at a time."""
    starts = [range(0, len(z), _KERNEL_ROWS) for z in (x, y)]
    return math.fsum(
        float(_kernel(x[i : i + _KERNEL_ROWS] @ y[j : j + _KERNEL_ROWS].T, x.shape[1]).sum())
        for i in starts[0]
        for j in starts[1]
    )
