"""What the plots share: a check before the work, one look, and files that are whole or not there.

matplotlib is an extra of the package; it is imported where something is drawn.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from i3d import files
from i3d.errors import UsageError

DOTS_PER_INCH = 130


def check_plot(output: files.Location, *, suffix: str = "") -> None:
    """Refuse before the work what could not be drawn after it.

    Args:
        output: path or URL of the plot.
        suffix: the one that is taken, such as ``png``; "" takes all that matplotlib writes.

    Raises:
        UsageError: matplotlib is not installed, or cannot write that suffix.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install matplotlib") from None
    ending = _suffix(output)
    supported = FigureCanvasBase.get_supported_filetypes()
    if suffix and ending != suffix:
        raise UsageError(f"{output}: a plot is a .{suffix} file; end the name so")
    if ending not in supported:
        raise UsageError(f"{output}: cannot draw that; the suffixes are {', '.join(supported)}")


@contextmanager
def draw_plot(output: files.Location, *, inches: tuple[float, float]) -> Iterator[Any]:
    """Give an empty matplotlib ``Figure``, and write it atomically when the block ends.

    Args:
        output: path or URL; its suffix is the format.
        inches: width and height.

    Raises:
        UsageError: as `check_plot`.
    """
    check_plot(output)
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    yield figure
    files.write_by(
        output, lambda path: figure.savefig(path, dpi=DOTS_PER_INCH, format=_suffix(output))
    )


def style_axes(*plots: Any) -> None:
    """Give matplotlib's axes a light grid and no frame above and to the right."""
    for axes in plots:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)


def _suffix(output: files.Location) -> str:
    return PurePath(os.fspath(output)).suffix.removeprefix(".")
