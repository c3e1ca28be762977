"""Fréchet Video Distance, by named protocols."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.fvd.metric import FrechetVideoDistance as FrechetVideoDistance
    from i3d.tasks.fvd.options import Beside as Beside
    from i3d.tasks.fvd.protocols import PROTOCOLS as PROTOCOLS
    from i3d.tasks.fvd.protocols import Protocol as Protocol
    from i3d.tasks.fvd.protocols import change_protocol as change_protocol
    from i3d.tasks.fvd.result import FewVideosWarning as FewVideosWarning
    from i3d.tasks.fvd.result import FrameSizeWarning as FrameSizeWarning
    from i3d.tasks.fvd.run import fvd as fvd
    from i3d.tasks.fvd.run import save_set as save_set

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "metric": "FrechetVideoDistance",
        "options": "Beside",
        "result": "FewVideosWarning FrameSizeWarning",
        "run": "fvd save_set",
        "protocols": "PROTOCOLS Protocol change_protocol",
    },
)
