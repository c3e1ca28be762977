"""Figures of merit that add up: ``update`` with a batch, ``merge`` other processes', ``compute``.

Counts are exact integers and sums float64, so the result depends neither on the order of the videos
nor on how they were shared between processes.
"""

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from i3d.errors import I3DError

TOP_K = 5
BINS = 15  # of confidence; Guo et al., "On Calibration of Modern Neural Networks" (1706.04599)


@dataclass(frozen=True)
class Proportion:
    """A share of videos with its 95 % confidence interval.

    Attributes:
        value: share in 0..1.
        low: lower end of the Wilson score interval.
        high: its upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ReliabilityBin:
    """The videos whose best class had a probability in ``(lower, upper]``.

    Attributes:
        lower: probability in 0..1, excluded but for the first bin.
        upper: probability in 0..1, included.
        videos: number of them.
        confidence: mean probability in 0..1; 0 when there are no videos.
        accuracy: share in 0..1 that was right; 0 when there are no videos.
    """

    lower: float
    upper: float
    videos: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassificationScores:
    """What `Classification.compute` gives.

    Attributes:
        videos: number of labelled videos.
        top1: share whose best class is the true one.
        top5: share whose true class is among the five best (all classes where there are fewer).
        mean_class: mean in 0..1 over the classes that have videos, of each one's top-1.
        calibration_error: expected calibration error in 0..1, the mean distance of confidence and
            accuracy over the reliability bins, weighted by their videos.
        confusion: int64 (K, K); row: true class, column: best class.
        reliability: bins of equal width over 0..1.
    """

    videos: int
    top1: Proportion
    top5: Proportion
    mean_class: float
    calibration_error: float
    confusion: np.ndarray
    reliability: tuple[ReliabilityBin, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values, without the confusion matrix; the intervals as ``[low, high]``."""
        return {
            "videos": self.videos,
            "top1": self.top1.value,
            "top1_interval": [self.top1.low, self.top1.high],
            "top5": self.top5.value,
            "top5_interval": [self.top5.low, self.top5.high],
            "mean_class": self.mean_class,
            "calibration_error": self.calibration_error,
            "reliability": [asdict(b) for b in self.reliability],
        }


class Classification:
    """Top-1, top-5, mean class accuracy, confusion and calibration of a classifier.

    Args:
        num_classes: number K of classes, at least 1.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise I3DError(f"num_classes is {num_classes}; it must be at least 1")
        self.num_classes = num_classes
        self._top5 = 0
        self._confusion = np.zeros((num_classes, num_classes), np.int64)
        self._bin_videos = np.zeros(BINS, np.int64)
        self._bin_right = np.zeros(BINS, np.int64)
        self._bin_confidence = np.zeros(BINS, np.float64)

    def update(self, logits: np.ndarray, targets: np.ndarray) -> None:
        """Count a batch.

        Equal logits rank in the order of their index.

        Args:
            logits: float (N, K).
            targets: int (N,), the true classes, 0 to K - 1.

        Raises:
            I3DError: shapes that do not fit, a class out of range, NaN or infinity.
        """
        logits, targets = np.asarray(logits), np.asarray(targets)
        if logits.shape != (len(targets), self.num_classes) or targets.ndim != 1:
            raise I3DError(
                f"logits {logits.shape} and targets {targets.shape} do not fit; they must be "
                f"(N, {self.num_classes}) and (N,)"
            )
        if not len(targets):
            return
        if targets.min() < 0 or targets.max() >= self.num_classes:
            raise I3DError(f"a target is not a class index of 0 to {self.num_classes - 1}")
        if not np.isfinite(logits).all():
            raise I3DError("logits hold NaN or infinity; their ranks mean nothing")
        best = logits.argmax(1)  # the first of equal ones
        self._top5 += int((ranks(logits, targets) < TOP_K).sum())
        np.add.at(self._confusion, (targets, best), 1)
        confidence = probabilities(logits)[np.arange(len(best)), best]
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        np.add.at(self._bin_videos, bins, 1)
        np.add.at(self._bin_right, bins, best == targets)
        np.add.at(self._bin_confidence, bins, confidence)

    def merge(self, other: "Classification") -> None:
        """Add what another process counted.

        Raises:
            I3DError: it counted another number of classes.
        """
        if other.num_classes != self.num_classes:
            raise I3DError(
                f"counts of {other.num_classes} and {self.num_classes} classes cannot be merged"
            )
        self._top5 += other._top5
        self._confusion += other._confusion
        self._bin_videos += other._bin_videos
        self._bin_right += other._bin_right
        self._bin_confidence += other._bin_confidence

    def compute(self) -> ClassificationScores:
        """The scores of all that was counted.

        Raises:
            I3DError: no video was counted.
        """
        per_class = self._confusion.sum(1)
        videos = int(per_class.sum())
        if not videos:
            raise I3DError("no labelled video was evaluated, so there is no accuracy")
        right = self._confusion.diagonal()
        there = per_class > 0
        filled = np.maximum(self._bin_videos, 1)
        confidence, accuracy = self._bin_confidence / filled, self._bin_right / filled
        error = (self._bin_videos * np.abs(confidence - accuracy)).sum() / videos
        return ClassificationScores(
            videos=videos,
            top1=proportion(int(right.sum()), videos),
            top5=proportion(self._top5, videos),
            mean_class=float((right[there] / per_class[there]).mean()),
            calibration_error=float(error),
            confusion=self._confusion.copy(),
            reliability=tuple(
                ReliabilityBin(
                    i / BINS,
                    (i + 1) / BINS,
                    int(self._bin_videos[i]),
                    float(confidence[i]),
                    float(accuracy[i]),
                )
                for i in range(BINS)
            ),
        )


def ranks(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The place of each true class among the logits: int (N,), 0 is the best.

    Equal logits rank in the order of their index, as a stable sort has them.
    """
    own = logits[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(logits.shape[1]) < targets[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def proportion(successes: int, trials: int, *, confidence: float = 0.95) -> Proportion:
    """A share with its Wilson score interval (Wilson 1927, without continuity correction).

    Unlike the normal approximation it stays within 0..1 and holds for few trials.

    Raises:
        I3DError: not ``0 <= successes <= trials`` with at least one trial.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise I3DError(f"{successes} of {trials} is no proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (share * (1 - share) / trials + z * z / (4 * trials**2)) ** 0.5 / (1 + z * z / trials)
    # rounding would leave 1e-17 at the ends
    low = 0.0 if successes == 0 else centre - z * half
    high = 1.0 if successes == trials else centre + z * half
    return Proportion(share, max(0.0, low), min(1.0, high))
