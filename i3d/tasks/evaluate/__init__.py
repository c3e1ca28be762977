"""Accuracy of an RGB network, a flow network or both on a labelled dataset."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.evaluate.logits import Evaluated, evaluate
    from i3d.tasks.evaluate.options import EvaluateOptions
    from i3d.tasks.evaluate.page import write_page
    from i3d.tasks.evaluate.predictions import Predictions, read_predictions, write_predictions
    from i3d.tasks.evaluate.result import Evaluation

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
