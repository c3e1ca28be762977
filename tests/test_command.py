"""Settings as options: said once, grouped, on a screen; and every option that was there stays."""

from dataclasses import dataclass
from typing import Literal

import click
import pytest

from i3d.cli import cli, main
from i3d.command import CONTEXT, command
from i3d.errors import UsageError
from i3d.settings import option, required_option

SCREEN = 40  # lines

# The long options of version 0.1.0: contracts with scripts.
OPTIONS = {
    "convert": "bn-eps classes json",
    "demo": "action per-class seed videos-only workers",
    "evaluate": "annotations batch-size classes clips crops device flow-checkpoint frames fuse "
    "json layout output partial precision predictions report resume rgb-checkpoint split strict "
    "trim workers",
    "export": "precision json",
    "features": "annotations batch-size checkpoint device endpoint for format json layout partial "
    "precision rest short split step strict trim window workers",
    "fvd": "batch-size bn-eps checkpoint device divisor endpoint fit frames json kvd output plot "
    "precision protocol resize save-statistics strict stride videos workers",
    "precompute": "annotations classes clips-per-shard device dry-run json layout max-seconds "
    "no-flow quality short-side split strict trim workers",
    "predict": "checkpoint device every json plot runtime top-k",
    "verify": "device json quick samples",
    "train": "accumulate batch-size bn-momentum clip-gradients compile device dropout ema epochs "
    "flip frames freeze init json label-smoothing learning-rate log-steps momentum no-flip output "
    "precision recipe resume save-steps seed steps stream sync-batch-norm val val-every val-frames "
    "warmup-steps weight-decay width workers",
}


def flags_of(name):
    parameters = cli.commands[name].params
    options = [p for p in parameters if isinstance(p, click.Option)]
    return {flag.removeprefix("--") for p in options for flag in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options_stay(name):
    assert set(OPTIONS[name].split()) <= flags_of(name)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_help_fits_a_screen_and_names_everything(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    page = capsys.readouterr().out
    assert done.value.code == 0
    assert len(page.splitlines()) <= SCREEN
    assert f"Example:  i3d {name} " in page
    shown = page.replace(",", " ").split()
    rare = [flag for flag in OPTIONS[name].split() if flag != "no-flip" and f"--{flag}" not in page]
    assert not rare, f"{rare} are nowhere; there are {shown}"
    if "--help-all" in page:
        with pytest.raises(SystemExit):
            main([name, "--help-all"])
        whole = capsys.readouterr().out
        assert len(whole) > len(page) and "which --help-all explains" not in whole


def test_underscores_are_hyphens(capsys):
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "nothing", "--rgb_checkpoint", "x", "--batch_size", "0"])
    assert done.value.code == 2
    assert "batch size 0" in capsys.readouterr().err


@dataclass(frozen=True)
class Settings:
    place: str
    size: int = option(3, "Pixels.")
    share: float | None = option(None, "Share.", default_is="all")
    kind: Literal["a", "b"] = option("a", "Kind.", heading="Rare")
    names: tuple[str, ...] = option((), "Names.", flag="--name")
    quiet: bool = option(False, "Say nothing.")
    flow: bool = option(True, "Frames alone.", flag="--no-flow")
    resume: bool | None = option(None, "Go on.", flag="--resume/--no-resume")
    batch: int | None = option(None, "Clips.", metavar="N|auto", default_is="auto")

    def __post_init__(self):
        if self.size < 1:
            raise UsageError(f"size {self.size}: at least 1")


@dataclass(frozen=True)
class Needed:
    output: str = required_option("Where to.", metavar="DIR")


def call(*arguments):
    group = click.Group("i3d", context_settings=CONTEXT)
    calls = []

    @command(group, Settings, Needed, omit=["share"])
    @click.argument("place")
    def job(settings, needed, place):
        """Do it."""
        calls.append((settings(place), needed))

    group.main(["job", *arguments], standalone_mode=False)
    return calls[0]


def test_fields_become_options():
    assert call("here", "--output", "x") == (Settings("here"), Needed("x"))
    given = ["--size", "5", "--kind", "b", "--name", "p", "--name", "q", "--quiet", "--no-flow"]
    settings, _ = call("here", "--output", "x", *given, "--no-resume", "--batch", "4")
    assert settings == Settings(
        "here", 5, None, "b", ("p", "q"), True, False, resume=False, batch=4
    )
    assert call("here", "--output", "x", "--resume", "--batch", "auto")[0].resume is True


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["here"], click.MissingParameter),
        (["here", "--output", "x", "--kind", "c"], click.BadParameter),
        (["here", "--output", "x", "--size", "five"], click.BadParameter),
        (["here", "--output", "x", "--share", "1"], click.NoSuchOption),
        (["here", "--output", "x", "--size", "0"], UsageError),
    ],
)
def test_mistakes_in_options(arguments, error):
    with pytest.raises(error):
        call(*arguments)
