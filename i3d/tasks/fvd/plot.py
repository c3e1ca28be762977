"""A picture of how a Fréchet Video Distance falls with the number of videos."""

from i3d import files
from i3d.report.plot import draw_plot, style_axes
from i3d.tasks.fvd.result import Result


def plot_curve(result: Result, output: files.Location) -> None:
    """Draw the curve to a ``.png``, atomically: over 1 / N, in which the bias is nearly a line.

    Args:
        result: distance with the points of its curve.
        output: path or URL of the picture.
    """
    points, endless = result.analysis.points, result.analysis.endless
    places = [1 / p.count for p in points]
    with draw_plot(output, inches=(9, 5)) as figure:
        axes = figure.subplots()
        axes.fill_between(
            places,
            [p.lowest for p in points],
            [p.highest for p in points],
            alpha=0.25,
            linewidth=0,
            label="lowest to highest subset",
        )
        axes.plot(places, [p.mean for p in points], marker="o", markersize=4, label="mean")
        if endless is not None:
            axes.plot(
                [0, places[-1]],
                [endless, points[-1].mean],
                linestyle="--",
                color="gray",
                label=f"extrapolated: {endless:.1f}",
            )
        axes.set_xticks([0, *places], ["∞", *(str(p.count) for p in points)])
        axes.tick_params(axis="x", rotation=60)
        axes.set(xlabel="videos of each set", ylabel="FVD", xlim=(0, None))
        axes.set_title(result.name, fontsize="small", wrap=True)
        style_axes(axes)
        axes.legend(frameon=False)
