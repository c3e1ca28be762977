"""Accuracies against scikit-learn and SciPy, which we did not write."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from i3d.errors import I3DError
from i3d.metrics import Classification, probabilities, proportion, ranks

CLASSES = 30


def drawn(videos=500, seed=0, num_classes=CLASSES):
    """Logits that are right about half of the time; some classes have no video."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, max(1, num_classes - 3), videos)
    logits = rng.normal(0, 1, (videos, num_classes)).astype(np.float32)
    logits[np.arange(videos), targets] += rng.normal(2, 1, videos)
    return logits, targets


def scored(logits, targets):
    counts = Classification(logits.shape[1])
    counts.update(logits, targets)
    return counts.compute()


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed):
    logits, targets = drawn(seed=seed)
    scores = scored(logits, targets)
    labels = np.arange(CLASSES)
    assert scores.top1.value == top_k_accuracy_score(targets, logits, k=1, labels=labels)
    assert scores.top5.value == top_k_accuracy_score(targets, logits, k=5, labels=labels)
    best = logits.argmax(1)
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(targets, best, labels=labels))
    assert scores.mean_class == pytest.approx(balanced_accuracy_score(targets, best), abs=1e-12)


def test_calibration_error_by_its_definition():
    """Weighted mean of |confidence - accuracy| over 15 bins, with NumPy's own histogram."""
    logits, targets = drawn(2000)
    shares = softmax(logits.astype(np.float64), axis=1)
    confidence, right = shares.max(1), shares.argmax(1) == targets
    edges = np.linspace(0, 1, 16)
    videos = np.histogram(confidence, edges)[0]
    gap = np.histogram(confidence, edges, weights=confidence - right)[0]
    scores = scored(logits, targets)
    assert scores.calibration_error == pytest.approx(np.abs(gap).sum() / len(targets), abs=1e-12)
    assert [b.videos for b in scores.reliability] == videos.tolist()


@given(st.integers(0, 200), st.integers(1, 200))
def test_interval_is_scipys(successes, trials):
    successes = min(successes, trials)
    ours = proportion(successes, trials)
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@settings(max_examples=50)
@given(st.data())
def test_any_partition_merges_to_the_same(data):
    logits, targets = drawn(60)
    logits = np.round(logits)  # many ties
    whole = scored(logits, targets)
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), max_size=5)))
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(60)
    merged = Classification(CLASSES)
    for part in np.split(order, cuts):
        counts = Classification(CLASSES)
        counts.update(logits[part], targets[part])
        merged.merge(counts)
    result = merged.compute()
    np.testing.assert_array_equal(result.confusion, whole.confusion)
    assert (result.top1, result.top5) == (whole.top1, whole.top5)
    assert result.calibration_error == pytest.approx(whole.calibration_error, abs=1e-12)


def test_ranks_break_ties_as_a_stable_sort():
    logits, targets = drawn(300)
    logits = np.round(logits)
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_array_equal(ranks(logits, targets), (order == targets[:, None]).argmax(1))


def test_probabilities_do_not_overflow():
    logits = np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32)
    np.testing.assert_array_equal(probabilities(logits), [[1, 0], [0.5, 0.5]])


def test_few_classes_and_no_videos():
    scores = scored(np.array([[0.0, 1.0]]), np.array([0]))
    assert (scores.top1.value, scores.top5.value) == (0, 1)
    with pytest.raises(I3DError, match="no labelled video"):
        Classification(3).compute()


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros((2, 3)), np.array([0]), "do not fit"),
        (np.zeros((1, 4)), np.array([0]), "do not fit"),
        (np.zeros((1, 3)), np.array([3]), "0 to 2"),
        (np.zeros((1, 3)), np.array([-1]), "0 to 2"),
        (np.full((1, 3), np.nan), np.array([0]), "NaN"),
    ],
)
def test_what_cannot_be_counted_is_refused(logits, targets, message):
    with pytest.raises(I3DError, match=message):
        Classification(3).update(logits, targets)


def test_merging_needs_the_same_classes():
    with pytest.raises(I3DError, match="3 and 4 classes"):
        Classification(4).merge(Classification(3))
