"""Fréchet Video Distance, by named protocols."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.fvd.metric import FewVideosWarning, FrechetVideoDistance, Options, fvd
    from i3d.tasks.fvd.protocols import PROTOCOLS, Protocol

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "metric": "FewVideosWarning FrechetVideoDistance Options fvd",
        "protocols": "PROTOCOLS Protocol",
    },
)
