"""The campaign of mutated files: what it sees, and a minute of it."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS


def fuzz(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TESTS / "campaigns" / "fuzz"), "--output", str(output), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What it prints of a reader with every fault, and its findings."""
    output = tmp_path_factory.mktemp("fuzz")
    done = fuzz(output, "--target", "faults", "--cases", "60", "--minutes", "9", "--seed", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout, output / "findings" / "faults"


@pytest.mark.parametrize(
    "words",
    [
        "KeyError at faults.py",
        "message of another number of lines at faults.py",
        "MemoryError at faults.py",
        "crash (exit -6)",
        "hang",
        "result holds numbers that are not finite",
        "result of a damaged file is another than the sound one's",
    ],
)
def test_every_kind_of_fault_is_seen(faults, words):
    printed, _ = faults
    assert f"FINDING faults: {words}" in printed, printed


def test_a_finding_is_found_again(faults):
    """By the command that stands in its report, from its file alone."""
    _, folder = faults
    for finding in sorted(folder.iterdir()):
        report = (finding / "report.txt").read_text()
        assert f"--replay {finding}" in report and (finding / "files" / "file").exists()
    kinds = {f: (f / "report.txt").read_text().partition(":")[0] for f in folder.iterdir()}
    for wanted in ("KeyError", "crash (exit -6)", "result of a damaged file"):
        finding = next(f for f, kind in sorted(kinds.items()) if kind.startswith(wanted))
        done = fuzz(folder, "--replay", str(finding))
        assert done.returncode == 1 and done.stdout.startswith(wanted), done.stdout + done.stderr


def test_no_mutated_file_finds_a_fault(tmp_path):
    """Every target for its share of a minute; `make fuzz` runs as long as it is told."""
    done = fuzz(tmp_path, "--minutes", "1", "--seed", "0")
    reports = "\n".join(path.read_text() for path in tmp_path.glob("findings/*/*/report.txt"))
    assert done.returncode == 0, done.stdout + done.stderr + reports
