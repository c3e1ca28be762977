"""A picture of a run: loss, top-1 and learning rate over the epochs."""

from matplotlib.ticker import MaxNLocator

from i3d import files
from i3d.report.plot import draw_plot, style_axes
from i3d.tasks.train.state import History

MARKED = 60  # so few points are marked, more are a line


def plot_curves(
    history: History, output: files.Location, *, steps_per_epoch: int, title: str = ""
) -> None:
    """Draw the curves to a ``.png``, atomically.

    Args:
        history: figures that the run logged.
        output: path or URL of the picture.
        steps_per_epoch: steps, of which the axis counts epochs.
        title: text above the picture.
    """
    epochs = [row.step / steps_per_epoch for row in history.log]
    validated = [row.step / steps_per_epoch for row in history.validation]
    style = {"marker": "o", "markersize": 3} if len(validated) <= MARKED else {}
    with draw_plot(output, inches=(10, 7)) as figure:
        loss, top1, rate = figure.subplots(3, 1, height_ratios=(3, 3, 1), sharex=True)

        loss.plot(epochs, [row.loss for row in history.log], label="training", linewidth=1)
        top1.plot(epochs, [100 * row.top1 for row in history.log], label="training", linewidth=1)
        if validated:
            losses = [row.loss for row in history.validation]
            shares = [100 * row.top1 for row in history.validation]
            loss.plot(validated, losses, label="validation", **style)
            top1.plot(validated, shares, label="validation", **style)
        if (best := history.best) is not None:
            where = best.step / steps_per_epoch, 100 * best.top1
            label = f"best: {where[1]:.1f} % after epoch {best.epoch}"
            top1.plot(*where, "*", markersize=11, color="black", label=label)
        rate.plot(epochs, [row.learning_rate for row in history.log], linewidth=1, color="gray")

        loss.set(ylabel="loss", title=title, ylim=(0, None))
        top1.set(ylabel="top-1, %", ylim=(0, 100))
        rate.set(ylabel="learning rate", xlabel="epoch")
        rate.yaxis.set_major_locator(MaxNLocator(3))
        style_axes(loss, top1, rate)
        loss.legend(frameon=False)
        top1.legend(frameon=False, loc="lower right")
