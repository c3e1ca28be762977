"""A validation during training: what `i3d evaluate` says of the network that is kept."""

import numpy as np

from i3d.models.checkpoints import build
from i3d.models.format import Weights
from i3d.tasks.evaluate.logits import evaluate
from i3d.tasks.evaluate.options import EvaluateOptions
from i3d.tasks.train.plan import Plan
from i3d.tasks.train.state import ValidationRow


def validate(plan: Plan, weights: Weights, *, step: int) -> ValidationRow | None:
    """Evaluate weights on the validation shards, together with the other processes.

    Args:
        plan: the run's; it has validation shards.
        weights: the same in all processes.
        step: how many were done.

    Returns:
        The row, on process 0; None on the others.
    """
    assert plan.val is not None
    stream = plan.run.stream
    evaluated = evaluate(
        plan.val,
        {stream: build(weights).fold()},
        options=EvaluateOptions(
            frames=plan.options.val_frames or plan.options.frames,
            precision=plan.options.precision,
            batch_size=plan.order.batch_size if plan.device != "cpu" else None,
            workers=plan.options.workers,
            device=plan.device,
        ),
        world=plan.world,
    )
    if evaluated is None:
        return None
    scores = evaluated.evaluation.scores[stream]
    predictions = evaluated.evaluation.predictions
    return ValidationRow(
        step=step,
        epoch=plan.order.epoch_of(step - 1) + 1,
        videos=scores.videos,
        skipped=len(predictions.about.skipped),
        loss=cross_entropy(predictions.logits[stream], predictions.targets),
        top1=scores.top1.value,
        top5=scores.top5.value,
        mean_class=scores.mean_class,
    )


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over videos, in float64: logits (N, K), targets int (N,)."""
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    own = logits[np.arange(len(targets)), targets]
    return float((np.log(np.exp(logits).sum(1)) - own).mean())
