"""Features of videos of any length: windows through a network, a file a video."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.features.extraction import Extracted as Extracted
    from i3d.tasks.features.extraction import extract as extract
    from i3d.tasks.features.options import FeatureOptions as FeatureOptions

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "options": "FeatureOptions",
        "extraction": "Extracted extract",
    },
)
