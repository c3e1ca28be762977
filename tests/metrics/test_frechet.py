"""Fréchet's distance against closed forms, mpmath and SciPy; KVD against scikit-learn."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ortho_group
from sklearn.metrics.pairwise import polynomial_kernel

import i3d
from i3d.errors import I3DError
from i3d.metrics.frechet import (
    FEW,
    ClassDistance,
    CurvePoint,
    Moments,
    bootstrap,
    class_distances,
    curve,
    distance,
    endless,
    frechet_distance,
    kernel_distance,
)

DIMENSIONS = 400  # of the logits


def moments_of(features, *, keep=False, batch=None):
    moments = Moments(features.shape[1], keep=keep)
    for start in range(0, len(features), batch or len(features)):
        moments.update(features[start : start + (batch or len(features))])
    return moments


def features(count, dimensions=DIMENSIONS, seed=0, *, shift=0.0):
    """Correlated, of unequal variances, as logits are; float32."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions)) / dimensions**0.5
    scales = np.geomspace(10, 0.01, dimensions)
    return (rng.normal(size=(count, dimensions)) * scales @ mixing + shift).astype(np.float32)


def exact_distance(mu1, cov1, mu2, cov2):
    """At 60 digits, by the eigenvalues of the plain product."""
    with mpmath.workdps(60):
        c1, c2 = mpmath.matrix(cov1.tolist()), mpmath.matrix(cov2.tolist())
        eigenvalues = mpmath.eig(c1 * c2, left=False, right=False)
        root = sum(mpmath.sqrt(abs(mpmath.re(e))) for e in eigenvalues)
        apart = sum((mpmath.mpf(a) - mpmath.mpf(b)) ** 2 for a, b in zip(mu1, mu2, strict=True))
        traces = sum(c1[i, i] + c2[i, i] for i in range(len(mu1)))
        return float(apart + traces - 2 * root)


# --- closed forms ---------------------------------------------------------------------------------


def test_two_gaussians_by_hand():
    # 3^2 + 4^2, and (2 - 1)^2 of the one variance that differs
    value = i3d.frechet_distance([0.0, 0.0], [[1, 0], [0, 1]], [3.0, 4.0], [[4, 0], [0, 1]])
    assert value == pytest.approx(26.0, abs=1e-14)


variances = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@given(st.data(), variances)
def test_covariances_that_commute(data, first):
    """Sum of (sqrt a - sqrt b)^2 in any basis, zero variances included."""
    n = len(first)
    second = data.draw(st.lists(st.floats(0, 100), min_size=n, max_size=n))
    shift = data.draw(st.lists(st.floats(-50, 50), min_size=n, max_size=n))
    basis = np.eye(1)
    if n > 1:
        basis = ortho_group.rvs(n, random_state=np.random.RandomState(data.draw(st.integers(0, 9))))
    c1, c2 = (basis.T @ np.diag(v) @ basis for v in (first, second))
    closed = ((np.sqrt(first) - np.sqrt(second)) ** 2).sum() + np.square(shift).sum()
    value = frechet_distance(np.zeros(n), c1, basis.T @ shift, c2)
    # Where a variance is 0, rounding of 1e-16 c in a matrix is 1e-8 c in its root.
    assert value == pytest.approx(closed, rel=1e-9, abs=5e-5)


def test_a_point_and_a_gaussian():
    """A point has distance |difference|^2 + trace."""
    covariance = np.cov(features(50, 8).T)
    value = frechet_distance(np.ones(8), np.zeros((8, 8)), np.zeros(8), covariance)
    assert value == pytest.approx(8 + np.trace(covariance), rel=1e-13)


@pytest.mark.parametrize("divisor", [True, False])
def test_samples_of_known_gaussians(divisor):
    """20,000 samples of each: what is left is their noise."""
    rng = np.random.default_rng(3)
    basis = ortho_group.rvs(6, random_state=3)
    c1 = basis.T @ np.diag([9, 4, 4, 1, 1, 0.25]) @ basis
    c2 = np.diag([1.0, 2, 3, 4, 5, 6])
    mu2 = np.array([2.0, 0, -1, 0, 0, 1])
    x = rng.multivariate_normal(np.zeros(6), c1, 20_000)
    y = rng.multivariate_normal(mu2, c2, 20_000)
    value = distance(moments_of(x), moments_of(y), unbiased=divisor)
    truth = exact_distance(np.zeros(6), c1, mu2, c2)
    assert value == pytest.approx(truth, rel=0.02)  # measured: 0.3 %


# --- against other arithmetic ---------------------------------------------------------------------


@pytest.mark.parametrize("smallest", [1.0, 1e-4, 1e-8])
def test_high_precision(smallest):
    """Condition numbers up to 1e8, where SciPy's root of the product is off by 1e-10."""
    rng = np.random.default_rng(1)
    n = 7
    pair = []
    for seed in (0, 1):
        basis = ortho_group.rvs(n, random_state=seed)
        pair.append(basis.T @ np.diag(np.geomspace(1, smallest, n)) @ basis)
        pair[-1] = (pair[-1] + pair[-1].T) / 2
    mu1, mu2 = rng.normal(size=(2, n))
    exact = exact_distance(mu1, pair[0], mu2, pair[1])
    # measured: 1.3e-15
    assert frechet_distance(mu1, pair[0], mu2, pair[1]) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize(("n", "m"), [(5, 6), (3, 12), (9, 4), (2, 2)])
def test_fewer_samples_than_dimensions_in_high_precision(n, m):
    x, y = features(n, 9, seed=1), features(m, 9, seed=2, shift=0.5)
    with mpmath.workdps(60):
        exact_moments = []
        for rows in (x, y):
            z = mpmath.matrix(rows.astype(float).tolist())
            mean = [sum(z[i, j] for i in range(z.rows)) / z.rows for j in range(z.cols)]
            centred = mpmath.matrix(z.rows, z.cols)
            for i in range(z.rows):
                for j in range(z.cols):
                    centred[i, j] = z[i, j] - mean[j]
            exact_moments.append((mean, centred))
        (mu1, a), (mu2, b) = exact_moments
        # The nonzero eigenvalues of C1 C2 are those of (A B')(A B')'.
        cross = a * b.T
        gram = cross * cross.T if n <= m else cross.T * cross
        roots = [mpmath.sqrt(abs(e)) for e in mpmath.eigsy(gram, eigvals_only=True)]
        shared = sum(roots) / mpmath.sqrt((n - 1) * (m - 1))
        traces = mpmath.mnorm(a, "f") ** 2 / (n - 1) + mpmath.mnorm(b, "f") ** 2 / (m - 1)
        apart = sum((p - q) ** 2 for p, q in zip(mu1, mu2, strict=True))
        exact = float(apart + traces - 2 * shared)
    # measured: 4e-15
    assert distance(moments_of(x), moments_of(y)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("count", [50, 300, 450])
def test_large_dimensions_against_numpy(count):
    """400 dimensions, N above and below: the singular values of NumPy's own covariances' roots."""
    x, y = features(count, seed=1), features(count + 7, seed=2, shift=0.1)
    c1, c2 = np.cov(x.astype(float).T), np.cov(y.astype(float).T)
    values, vectors = np.linalg.eigh(c1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    middle = np.linalg.eigvalsh(root @ c2 @ root).clip(0)
    apart = x.mean(0, dtype=float) - y.mean(0, dtype=float)
    theirs = apart @ apart + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(middle).sum()
    ours = distance(moments_of(x), moments_of(y))
    # measured: 1.5e-7 at 50 and 300, 9e-9 at 450: roots of eigenvalues that should be 0
    assert ours == pytest.approx(theirs, rel=1e-6)
    # measured: 5e-15
    assert frechet_distance(x.mean(0, dtype=float), c1, y.mean(0, dtype=float), c2) == (
        pytest.approx(ours, rel=1e-12)
    )


def test_scipys_root_where_it_is_stable():
    x, y = features(4000, 20, seed=1), features(3000, 20, seed=2, shift=1)
    c1, c2 = np.cov(x.astype(float).T), np.cov(y.astype(float).T)
    apart = x.mean(0, dtype=float) - y.mean(0, dtype=float)
    theirs = apart @ apart + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert distance(moments_of(x), moments_of(y)) == pytest.approx(theirs, rel=1e-9)


# --- properties -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 9, 399, 400, 401, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (100, 0), (1, 1e4)])
def test_identical_sets_have_no_distance(count, scale, shift):
    x = features(count) * scale + shift
    shuffled = np.random.default_rng(0).permutation(x)
    whole, parts = moments_of(x), moments_of(shuffled, batch=16)
    # measured: at most 1.5e-8, where the traces are 3e7, and 1e-12 elsewhere
    assert distance(whole, parts) <= 1e-6
    assert frechet_distance(whole.mean, whole.covariance(), whole.mean, whole.covariance()) <= 1e-6


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 5))
def test_symmetry_and_invariances(n, m, dimensions, seed):
    x = features(n, dimensions, seed).astype(float)
    y = features(m, dimensions, seed + 50).astype(float) + 0.5
    value = distance(moments_of(x), moments_of(y))
    tolerance = {"rel": 1e-9, "abs": 1e-9}
    assert distance(moments_of(y), moments_of(x)) == pytest.approx(value, **tolerance)
    assert distance(moments_of(3 * x), moments_of(3 * y)) == pytest.approx(9 * value, **tolerance)
    assert distance(moments_of(x + 7), moments_of(y + 7)) == pytest.approx(value, rel=1e-6)
    if dimensions > 1:
        basis = ortho_group.rvs(dimensions, random_state=seed)
        turned = distance(moments_of(x @ basis), moments_of(y @ basis))
        assert turned == pytest.approx(value, **tolerance)


@settings(max_examples=40)
@given(st.data())
def test_any_partition_and_order_merges_to_the_same(data):
    count, dimensions = data.draw(st.integers(2, 700)), data.draw(st.sampled_from([3, 300]))
    x = features(count, dimensions, shift=data.draw(st.sampled_from([0.0, 1e3])))
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(count)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    merged = Moments(dimensions)
    for part in np.split(order, cuts):
        other = (
            moments_of(x[part], batch=max(1, len(part) // 3))
            if len(part)
            else (Moments(dimensions))
        )
        merged.merge(Moments.from_arrays(other.to_arrays()))
    assert merged.count == count
    np.testing.assert_allclose(merged.mean, x.mean(0, dtype=float), rtol=0, atol=1e-9)
    scale = np.cov(x.astype(float).T).max()
    np.testing.assert_allclose(
        merged.covariance(), np.cov(x.astype(float).T), rtol=0, atol=1e-12 * scale
    )
    np.testing.assert_allclose(
        merged.covariance(unbiased=False), np.cov(x.astype(float).T, ddof=0), atol=1e-12 * scale
    )


def test_a_large_mean_costs_nothing():
    """Sums of squares would lose all digits of a variance of 1 beside a mean of 1e8."""
    x = np.random.default_rng(0).normal(size=(3000, 4)) + 1e8
    moments = moments_of(x, batch=100)
    assert moments.rows is None
    np.testing.assert_allclose(moments.covariance(), np.cov((x - 1e8).T), atol=1e-7)


def test_memory_does_not_grow():
    def held(moments):
        return sum(a.nbytes for a in moments.to_arrays().values())

    moments = Moments(300)
    sizes = []
    for seed in range(6):
        moments.update(features(300, 300, seed))
        sizes.append(held(moments))
    assert sizes[0] == 300 * 300 * 8 and set(sizes[1:]) == {300 * 300 * 8 + 300 * 8 + 8}
    small = moments_of(features(FEW, 10))
    assert small.rows is not None  # for the interval
    small.update(features(1, 10))
    assert small.rows is None
    assert moments_of(features(2000, 10), keep=True).rows.shape == (2000, 10)


# --- how sure it is, and the kernel distance ------------------------------------------------------


def test_the_interval_is_as_wide_as_the_noise():
    """Over 60 draws of both sets the distance spreads as one draw's interval says."""
    count, dimensions = 120, 5
    drawn = np.array(
        [
            distance(
                moments_of(features(count, dimensions, seed)),
                moments_of(features(count, dimensions, 1000 + seed, shift=1)),
            )
            for seed in range(60)
        ]
    )
    one, other = features(count, dimensions, 7), features(count, dimensions, 1007, shift=1)
    value = distance(moments_of(one), moments_of(other))
    interval = bootstrap(moments_of(one), moments_of(other))
    assert interval.low < value < interval.high
    width = np.subtract(*np.quantile(drawn, [0.975, 0.025]))
    assert 0.6 < (interval.high - interval.low) / width < 1.6  # measured: 1.25
    assert bootstrap(moments_of(one), moments_of(other)) == interval
    assert bootstrap(moments_of(one), moments_of(other), seed=1) != interval


def test_an_interval_needs_rows():
    large = moments_of(features(1000, 5))
    with pytest.raises(I3DError, match="nothing to draw from"):
        bootstrap(large, large)
    assert bootstrap(large, moments_of(features(30, 5)), replicates=5).replicates == 5


def test_the_curve_falls_to_the_distance():
    x, y = features(600, 20, 1), features(600, 20, 2)
    points = curve(x, y)
    assert [p.count for p in points] == [18, 37, 75, 150, 300, 600]
    means = [p.mean for p in points]
    assert means == sorted(means, reverse=True)
    whole = distance(moments_of(x), moments_of(y))
    assert (points[-1].lowest, points[-1].mean) == pytest.approx((whole, whole), rel=1e-9)
    assert curve(x, y) == points
    assert endless(points) < whole


def test_a_bias_of_one_over_n_is_extrapolated_away():
    points = [CurvePoint(n, 3 + 50 / n, 0, 99) for n in (64, 128, 256, 512)]
    assert endless(points) == pytest.approx(3, abs=1e-12)
    with pytest.raises(I3DError, match="two counts"):
        endless(points[:1])


def by_pairs(x, y):
    """The U-statistic with scikit-learn's kernel."""
    options = {"degree": 3, "gamma": 1 / x.shape[1], "coef0": 1}
    within = []
    for z in (x, y):
        k = polynomial_kernel(z, z, **options)
        within.append((k.sum() - np.trace(k)) / (len(z) * (len(z) - 1)))
    return sum(within) - 2 * polynomial_kernel(x, y, **options).mean()


@pytest.mark.parametrize(("n", "m"), [(2, 2), (40, 70), (1500, 1025)])
def test_kernel_distance_is_scikit_learns(n, m):
    x, y = features(n, 30, 1).astype(float), features(m, 30, 2, shift=1).astype(float)
    assert kernel_distance(x, y) == pytest.approx(by_pairs(x, y), rel=1e-9)


def test_the_kernel_distance_is_unbiased():
    values = [
        kernel_distance(features(12, 4, 2 * i) / 5, features(12, 4, 2 * i + 1) / 5)
        for i in range(400)
    ]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 4 * error
    biased = [
        distance(moments_of(features(12, 4, 2 * i) / 5), moments_of(features(12, 4, 2 * i + 1) / 5))
        for i in range(50)
    ]
    assert np.mean(biased) > 8 * np.std(biased) / len(biased) ** 0.5


# --- what is refused ------------------------------------------------------------------------------

GOOD = (np.zeros(2), np.eye(2))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((np.zeros(3), np.eye(3)), "of shapes"),
        ((np.zeros((2, 1)), np.eye(2)), "of shapes"),
        ((np.zeros(2), np.zeros((2, 3))), "square"),
        ((np.zeros(2), np.array([[1, 0.5], [0, 1]])), "not symmetric"),
        ((np.zeros(2), np.array([[1, 2], [2, 1]])), "negative eigenvalue -1"),
        ((np.zeros(2), np.full((2, 2), np.nan)), "covariance holds NaN"),
        ((np.array([0, np.inf]), np.eye(2)), "distance is inf"),
        ((np.array([0, np.nan]), np.eye(2)), "distance is nan"),
    ],
)
def test_what_is_no_gaussian_is_refused(second, message):
    with pytest.raises(I3DError, match=message):
        frechet_distance(*GOOD, *second)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((3, 4)), r"not \(N, 5\)"),
        (np.zeros(5), r"not \(N, 5\)"),
        (np.zeros((3, 5), int), "must be floats"),
        (np.full((1, 5), np.inf), "NaN or infinity"),
    ],
)
def test_what_are_no_features_is_refused(batch, message):
    with pytest.raises(I3DError, match=message):
        Moments(5).update(batch)


def test_too_little_is_refused():
    one = moments_of(features(1, 5))
    with pytest.raises(I3DError, match="1 features; at least 2"):
        distance(one, one)
    with pytest.raises(I3DError, match="0 features"):
        _ = Moments(5).mean
    with pytest.raises(I3DError, match="4 and 5 dimensions"):
        Moments(5).merge(Moments(4))
    with pytest.raises(I3DError, match="1 to 16384"):
        Moments(1 << 20)
    with pytest.raises(I3DError, match="between 2 and 1"):
        curve(features(1, 5), features(9, 5))
    with pytest.raises(I3DError, match="needed"):
        kernel_distance(features(1, 5), features(9, 5))


# --- class by class -------------------------------------------------------------------------------


def test_classes_are_sets_by_themselves():
    x, y = features(30, 6, seed=1), features(25, 6, seed=2, shift=0.5)
    rng = np.random.default_rng(0)
    one = ["a/b", "run", "é"] * 10
    other = [str(c) for c in rng.permutation(["run"] * 14 + ["a/b"] * 9 + ["only fake", "é"])]
    found = {c.name: c for c in class_distances(x, y, one, other, unbiased=False)}
    assert list(found) == sorted(found) == ["a/b", "only fake", "run", "é"]
    for name, count in (("a/b", 9), ("run", 14)):
        chosen = [
            rows[[c == name for c in classes]].astype(float)
            for rows, classes in ((x, one), (y, other))
        ]
        (mu1, c1), (mu2, c2) = [(z.mean(0), np.cov(z.T, bias=True)) for z in chosen]
        # measured: 2e-15
        theirs = pytest.approx(exact_distance(mu1, c1, mu2, c2), rel=1e-12)
        assert found[name] == ClassDistance(name, 10, count, theirs)
    assert found["é"] == ClassDistance("é", 10, 1, None, "1 fake; a covariance needs at least 2")
    assert found["only fake"].reason == "0 real and 1 fake; a covariance needs at least 2"


def test_classes_and_rows_must_fit():
    rows = features(4, 6)
    with pytest.raises(I3DError, match="4 features with 3 classes"):
        class_distances(rows, rows, ["a"] * 4, ["a"] * 3)
    with pytest.raises(I3DError, match=r"\(4, 6\) and \(4, 5\)"):
        class_distances(rows, rows[:, 1:], ["a"] * 4, ["a"] * 4)
