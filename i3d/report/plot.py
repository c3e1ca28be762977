"""What the plots share: a check before the work, one look, and files that are whole or not there.

matplotlib is an extra of the package; it is imported where something is drawn.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from i3d import files
from i3d.errors import UsageError

DOTS_PER_INCH = 130


def check_plot(output: files.Location, *, suffix: str = "") -> None:
    """Refuse before the work what could not be drawn or written after it.

    Args:
        output: path or URL of the plot.
        suffix: the one that is taken, such as ``png``; "" takes all that matplotlib writes, and
            ``svg`` without it (`i3d.report.drawing`).

    Raises:
        UsageError: matplotlib is not installed, or cannot write that suffix; the folder is not
            there, or cannot be written to.
    """
    if suffix and _suffix(output) != suffix:
        raise UsageError(f"{output}: a plot is a .{suffix} file; end the name so")
    if suffix or _suffix(output) != "svg":
        _check_suffix(output)
    check_folder(output)


def check_folder(output: files.Location) -> None:
    """Refuse before the work a file that could not be written after it.

    Raises:
        UsageError: it is a folder; its folder is not there, or cannot be written to.
    """
    path = files.local_path(output)
    if path is None:  # a server makes folders as they are needed
        return
    if path.is_dir():
        raise UsageError(f"{output}: that is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"{output}: cannot write to the folder {path.parent} ({files.explain(error)}); "
            "make it, or name another"
        ) from None


def _check_suffix(output: files.Location) -> None:
    """Refuse what matplotlib cannot write."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise UsageError(
            f"{output}: a plot needs matplotlib: pip install matplotlib "
            "(the .svg of a timeline does without)"
        ) from None
    supported = FigureCanvasBase.get_supported_filetypes()
    if _suffix(output) not in supported:
        raise UsageError(f"{output}: cannot draw that; the suffixes are {', '.join(supported)}")


@contextmanager
def draw_plot(output: files.Location, *, inches: tuple[float, float]) -> Iterator[Any]:
    """Give an empty matplotlib ``Figure``, and write it atomically when the block ends.

    Args:
        output: path or URL; its suffix is the format.
        inches: width and height.

    Raises:
        UsageError: matplotlib is not installed, or cannot write that suffix.
    """
    _check_suffix(output)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # a class may be called $x$, or $\x$
    with rc_context({"text.parse_math": False, "text.usetex": False}):
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
