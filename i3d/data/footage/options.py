"""What must be said of arrays of videos where they do not say it themselves.

This module is imported by the command line: it loads nothing heavy.
"""

from dataclasses import dataclass
from typing import Literal

from i3d.settings import option

# N videos, T frames, C channels, H rows, W columns; without a C they are gray.
Layout = Literal["NTHWC", "NTCHW", "NCTHW", "NTHW", "THWC", "TCHW", "CTHW", "THW"]
ValueRange = Literal["0..1", "-1..1", "0..255"]

HEADING = "Arrays of videos"


@dataclass(frozen=True)
class FootageOptions:
    """How arrays of videos are to be understood; a set that needs no such word takes none."""

    layout: Layout | None = option(
        None,
        "Axes of arrays; the leading N may be left out.",
        default_is="by the axis that can be channels",
        heading=HEADING,
    )
    value_range: ValueRange | None = option(
        None,
        "What black and white are in arrays of floats.",
        flag="--range",
        default_is="none: floats need it",
        heading=HEADING,
    )
