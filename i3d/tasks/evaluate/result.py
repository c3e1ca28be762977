"""What an evaluation found, made from the logits alone: text, JSON, and what the page needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from i3d.metrics import (
    Classification,
    ClassificationScores,
    Proportion,
    probabilities,
    proportion,
)
from i3d.tasks.evaluate.predictions import Predictions
from i3d.tasks.evaluate.published import Published, protocol_notes, published_results

LABELS = {"rgb": "RGB", "flow": "flow", "two_stream": "two-stream"}
SHOWN_SKIPS = 10  # skipped videos, and damaged ones


@dataclass(frozen=True)
class Mistake:
    """A video whose best class is not its own.

    Attributes:
        video: its key.
        truth: index of its class.
        predicted: index of the best class.
        probability: the best class's, in 0..1.
    """

    video: str
    truth: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Confusion:
    """Videos of one class that were taken for another."""

    truth: int
    predicted: int
    videos: int


@dataclass(frozen=True)
class Cost:
    """What the run took; empty for logits that were read from files.

    Attributes:
        seconds: time from the first video to the last.
        videos: number evaluated in it, an earlier run's not counted.
        device: each process's.
        processes: how many.
        workers: each process's.
        batch_size: each process's.
    """

    seconds: float
    videos: int
    device: str
    processes: int
    workers: int
    batch_size: int

    @property
    def videos_per_second(self) -> float:
        """All processes together."""
        return self.videos / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Evaluation:
    """The accuracies of one or two streams on a dataset.

    Attributes:
        predictions: the logits that all of it comes from.
        cost: what they took; None where they were read from files.
    """

    predictions: Predictions
    cost: Cost | None = field(default=None)

    @cached_property
    def logits(self) -> Mapping[str, np.ndarray]:
        """Row of the table -> float32 (N, num_classes): ``two_stream`` is the streams' sum."""
        streams = self.predictions.logits
        rows: dict[str, np.ndarray] = {stream: streams[stream] for stream in streams}
        if len(rows) > 1:
            rows["two_stream"] = rows["rgb"] + rows["flow"]
        return rows

    @cached_property
    def scores(self) -> Mapping[str, ClassificationScores]:
        """Row of the table -> its scores."""
        return {row: self._score(logits) for row, logits in self.logits.items()}

    def _score(self, logits: np.ndarray) -> ClassificationScores:
        counts = Classification(len(self.classes))
        counts.update(logits, self.predictions.targets)
        return counts.compute()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the logits."""
        return self.predictions.about.classes

    @property
    def best_row(self) -> str:
        """The row that speaks for the whole: two streams where there are two."""
        return list(self.logits)[-1]

    @cached_property
    def published(self) -> tuple[Published, ...]:
        """What others reported for these networks."""
        return published_results(self.predictions.about)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """How this run differs from what was published."""
        return protocol_notes(self.predictions.about, evaluated=len(self.predictions))

    def surest_mistakes(self, count: int) -> tuple[Mistake, ...]:
        """The wrong answers with the highest probability, the surest first."""
        targets = self.predictions.targets
        shares = probabilities(self.logits[self.best_row])
        predicted = shares.argmax(1)
        wrong = np.flatnonzero(predicted != targets)
        surest = wrong[np.argsort(-shares[wrong, predicted[wrong]], kind="stable")][:count]
        return tuple(
            Mistake(
                self.predictions.videos[i],
                int(targets[i]),
                int(predicted[i]),
                float(shares[i, predicted[i]]),
            )
            for i in surest
        )

    def most_confused(self, count: int) -> tuple[Confusion, ...]:
        """The pairs of classes with the most mistakes, in one direction each."""
        confusion = self.scores[self.best_row].confusion.copy()
        np.fill_diagonal(confusion, 0)
        order = np.argsort(-confusion, axis=None, kind="stable")[:count]
        pairs = (divmod(int(i), len(self.classes)) for i in order)
        return tuple(Confusion(t, p, int(confusion[t, p])) for t, p in pairs if confusion[t, p])

    def class_accuracies(self) -> tuple[tuple[int, Proportion | None], ...]:
        """(videos, top-1) of every class; None where it has no video."""
        confusion = self.scores[self.best_row].confusion
        return tuple(
            (n, proportion(int(confusion[i, i]), n) if n else None)
            for i, n in enumerate(confusion.sum(1).tolist())
        )

    def as_dict(self) -> dict[str, Any]:
        """As ``i3d evaluate --output`` writes it; shares are in 0..1."""
        about = self.predictions.about
        document: dict[str, Any] = {
            "dataset": about.dataset,
            "found": about.found,
            "evaluated": len(self.predictions),
            "skipped": [{"video": s.key, "reason": s.reason} for s in about.skipped],
            "damaged": [{"video": d.key, "damage": d.damage} for d in about.damaged],
            **{row: scores.as_dict() for row, scores in self.scores.items()},
            "preset": about.preset,
            "protocol": {"frames": about.frames, "clips": about.clips, "crops": about.crops},
            "precision": about.precision,
            "checkpoints": {s: asdict(used) for s, used in about.checkpoints.items()},
            "published": [asdict(p) for p in self.published],
            "notes": list(self.notes),
            "versions": dict(about.versions),
        }
        if self.cost is not None:
            document |= {
                "seconds": self.cost.seconds,
                "videos_per_second": self.cost.videos_per_second,
                "device": self.cost.device,
                "processes": self.cost.processes,
                "workers": self.cost.workers,
                "batch_size": self.cost.batch_size,
            }
        return document

    def __str__(self) -> str:
        about = self.predictions.about
        lines = [
            f"{about.dataset}: {len(self.predictions)} of {about.found} videos evaluated, "
            f"{len(about.skipped)} skipped"
            + (f", {len(about.damaged)} of the evaluated damaged" if about.damaged else ""),
            f"{about.preset}, {about.clips} x {about.frames} frames, crops: {about.crops}, "
            f"{about.precision}",
            "",
            f"{'':12}{'top-1 %':>9}{'':17}{'top-5 %':>9}{'':17}{'mean class %':>12}",
        ]
        for row, s in self.scores.items():
            mean_class = f"{100 * s.mean_class:12.2f}"
            lines.append(f"{LABELS[row]:12}{_percent(s.top1):26}{_percent(s.top5):26}{mean_class}")
        # the line that the Chainer program printed
        lines.append(f"Top-1 accuracy {self.scores[self.best_row].top1.value}")
        if self.published:
            lines += ["", "published"]
            for p in self.published:
                top5 = "" if p.top5 is None else f"{100 * p.top5:9.2f}"
                lines.append(
                    f"{LABELS[p.row]:12}{100 * p.top1:9.1f}{'':17}{top5:9}{'':4}{p.protocol}"
                )
            lines += [f"note: {note}" for note in self.notes]
        lines.append("")
        for stream, used in about.checkpoints.items():
            lines.append(
                f"{LABELS[stream]}: {used.name}, weights sha256 {used.weights_sha256[:16]}"
            )
        lines.append("versions: " + ", ".join(f"{k} {v}" for k, v in about.versions.items()))
        if self.cost is not None:
            cost = self.cost
            lines.append(
                f"{cost.videos} videos in {cost.seconds:.1f} s, {cost.videos_per_second:.3g} "
                f"videos/s: {cost.device}, batch {cost.batch_size}, {cost.workers} workers, "
                f"processes: {cost.processes}"
            )
        for title, videos in (
            ("skipped", [f"{s.key}: {s.reason}" for s in about.skipped]),
            ("damaged", [f"{d.key}: {d.damage}" for d in about.damaged]),
        ):
            lines += [f"{title} {video}" for video in videos[:SHOWN_SKIPS]]
            if len(videos) > SHOWN_SKIPS:
                lines.append(f"... and {len(videos) - SHOWN_SKIPS} more {title}, all in --output")
        return "\n".join(lines)


def _percent(share: Proportion) -> str:
    """``71.43 [35.89, 91.78]`` with the 95 % interval, in columns."""
    return f"{100 * share.value:9.2f} [{100 * share.low:.2f}, {100 * share.high:.2f}]"
