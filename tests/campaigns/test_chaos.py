"""The campaign of disturbances: what it sees, and a short share of it."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns.chaos import running
from campaigns.chaos.inputs import Command
from campaigns.chaos.trial import Trial
from support.paths import TESTS

# A program that is right in its first run; in later ones it does what its last argument says.
PROGRAM = """\
import pathlib, subprocess, sys, tempfile
folder, fault = pathlib.Path(sys.argv[1]), sys.argv[2]
first = not (folder / "first").exists()
(folder / "result").write_text("right")
(folder / "first").touch()
print("{}")
if not first:
    exec(fault)
"""


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Function: what is wrong with the program -> the problems that a round finds."""
    monkeypatch.setattr(running, "QUIET_SECONDS", 0.5)
    program = [sys.executable, "-c", PROGRAM]
    monkeypatch.setattr(Trial, "program", property(lambda trial: [*program, trial.output, "pass"]))

    def make(name, reference=None):
        return Trial(Command(""), tmp_path / name, "", "", None, random.Random(0), reference)

    reference = make("undisturbed").become_reference()

    def run(fault, disturbed=()):
        words = property(lambda trial: [*program, trial.output, fault])
        monkeypatch.setattr(Trial, "program", words)
        with make("round", reference) as trial:
            trial.finish(trial.start(), "disturbed", codes=[0])
            trial.run_undisturbed()
        return trial.problems

    return run


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("(folder / 'result').write_text('wrong')", "result differs from an undisturbed run's"),
        ("(folder / 'result').unlink()", "result is missing"),
        ("(folder / 'more').touch()", "more is there, and not after an undisturbed run"),
        ("(folder / '.x.0123456789ab.tmp.npz').touch()", "left output/.x.0123456789ab.tmp.npz"),
        ("tempfile.mkdtemp(prefix='i3d-')", "left tmp/i3d-"),
        ("1 / 0", "standard error has 'Traceback"),
        ("sys.exit(3)", "exit code 3, not one of"),
        ("sys.exit(1)", "exit code 1 without a word"),
        ("sys.stderr.write('one\\ntwo\\nthree\\n')", "3 lines on standard error"),
        ("print('not JSON')", "standard output is no JSON"),
        ("subprocess.Popen(['sleep', '60'], start_new_session=True)", "a process stays"),
    ],
)
def test_every_kind_of_fault_is_seen(trial, fault, words):
    assert any(words in problem for problem in trial(fault))


def test_a_right_program_has_no_problems(trial):
    assert trial("pass") == []


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
    """Two minutes of it, with another seed each time; `make chaos` runs as long as it is told."""
    arguments = ["--minutes", "2", "--findings", str(tmp_path / "findings")]
    done = subprocess.run(
        [sys.executable, str(TESTS / "campaigns" / "chaos"), *arguments],
        cwd=Path(TESTS).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
