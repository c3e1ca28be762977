"""Accuracy of an RGB network, a flow network or both on a labelled dataset."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.evaluate.logits import Evaluated as Evaluated
    from i3d.tasks.evaluate.logits import evaluate as evaluate
    from i3d.tasks.evaluate.options import EvaluateOptions as EvaluateOptions
    from i3d.tasks.evaluate.page import write_page as write_page
    from i3d.tasks.evaluate.predictions import Predictions as Predictions
    from i3d.tasks.evaluate.predictions import read_predictions as read_predictions
    from i3d.tasks.evaluate.predictions import write_predictions as write_predictions
    from i3d.tasks.evaluate.result import Evaluation as Evaluation

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "options": "EvaluateOptions",
        "logits": "Evaluated evaluate",
        "result": "Evaluation",
        "predictions": "Predictions read_predictions write_predictions",
        "page": "write_page",
    },
)
