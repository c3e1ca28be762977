"""A picture of how a Fréchet Video Distance falls with the number of videos."""

import os

from i3d import files
from i3d.errors import UsageError
from i3d.tasks.fvd.result import Result

DOTS_PER_INCH = 130


def check_plot(output: files.Location) -> None:
    """Refuse before the work what could not be drawn after it.

    Raises:
        UsageError: matplotlib is not installed, or the name does not end in ``.png``.
    """
    try:
        import matplotlib.figure  # noqa: F401 (is it there?)
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install 'i3d[plot]'") from None
    if not os.fspath(output).endswith(".png"):
        raise UsageError(f"{output}: a plot is a .png file; end the name so")


def plot_curve(result: Result, output: files.Location) -> None:
    """Draw the curve to a ``.png``, atomically: over 1 / N, in which the bias is nearly a line.

    Args:
        result: with points.
        output: path or URL.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    points = result.points
    places = [1 / p.count for p in points]
    axes.fill_between(
        places,
        [p.lowest for p in points],
        [p.highest for p in points],
        alpha=0.25,
        linewidth=0,
        label="lowest to highest subset",
    )
    axes.plot(places, [p.mean for p in points], marker="o", markersize=4, label="mean")
    if result.endless is not None:
        axes.plot(
            [0, places[-1]],
            [result.endless, points[-1].mean],
            linestyle="--",
            color="gray",
            label=f"extrapolated: {result.endless:.1f}",
        )
    axes.set_xticks([0, *places], ["∞", *(str(p.count) for p in points)])
    axes.tick_params(axis="x", rotation=60)
    axes.set(xlabel="videos of each set", ylabel="FVD", xlim=(0, None))
    axes.set_title(result.name, fontsize="small", wrap=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with files.atomic_file(output) as path:
        figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
