"""What all plots share: the check before the work, and files that are whole or not there."""

import sys

import pytest

from i3d import files
from i3d.errors import UsageError
from i3d.report.plot import check_plot, draw_plot, style_axes

pytest.importorskip("matplotlib")

STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def draw(output):
    with draw_plot(output, inches=(4, 3)) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [1, 0])
        style_axes(axes)


@pytest.mark.parametrize("suffix", STARTS)
def test_the_suffix_is_the_format(tmp_path, suffix):
    target = tmp_path / f"plot.{suffix}"
    check_plot(target)
    draw(target)
    assert target.read_bytes().startswith(STARTS[suffix])
    assert list(tmp_path.iterdir()) == [target]


def test_a_plot_may_be_a_url():
    draw("memory://plots/plot.png")
    with files.open_read("memory://plots/plot.png") as file:
        assert file.read(4) == STARTS["png"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no such folder/plot.png", r"cannot write to the folder no such folder \(No such file"),
        ("no such folder/plot.svg", "make it, or name another"),
        ("a file/plot.png", r"cannot write to the folder a file \(Not a directory\)"),
        ("/proc/plot.png", "cannot write to the folder /proc"),  # whoever runs it
        ("a folder.png", "a folder.png: that is a folder; name a file in it"),
    ],
)
def test_where_nothing_can_be_written_is_refused_before_the_work(
    tmp_path, monkeypatch, name, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    (tmp_path / "a folder.png").mkdir()
    with pytest.raises(UsageError, match=words):
        check_plot(name)
    assert {p.name for p in tmp_path.iterdir()} == {"a file", "a folder.png"}


@pytest.mark.parametrize("name", ["plot.xyz", "plot", "plot.PNG.", "s3://bucket/plot.doc"])
def test_other_suffixes_are_refused_before_the_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for refuse in (check_plot, draw):
        with pytest.raises(UsageError, match=f"{name}: cannot draw that; the suffixes are .*png"):
            refuse(name)
    assert not list(tmp_path.iterdir())


def test_one_suffix_alone_can_be_taken():
    check_plot("plot.png", suffix="png")
    with pytest.raises(UsageError, match=r"plot.pdf: a plot is a .png file; end the name so"):
        check_plot("plot.pdf", suffix="png")


def test_matplotlib_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    for refuse in (check_plot, draw):
        with pytest.raises(UsageError, match=r"a plot needs matplotlib: pip install matplotlib"):
            refuse(tmp_path / "plot.png")


def test_a_timeline_as_svg_needs_no_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    check_plot(tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_a_drawing_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "plot.png"
    target.write_text("before")
    with pytest.raises(ZeroDivisionError), draw_plot(target, inches=(4, 3)):
        _ = 1 / 0
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_axes_have_a_light_grid_and_no_frame(tmp_path):
    with draw_plot(tmp_path / "plot.png", inches=(4, 3)) as figure:
        axes, other = figure.subplots(2)
        style_axes(axes, other)
        for each in (axes, other):
            visible = {name: spine.get_visible() for name, spine in each.spines.items()}
            assert visible == {"left": True, "bottom": True, "right": False, "top": False}
            assert each.xaxis.get_gridlines()[0].get_visible()
