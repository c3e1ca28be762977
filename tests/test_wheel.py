"""The package as users get it: the wheel, and its types."""

import os
import subprocess
import sys
import zipfile

import pytest
from support.paths import ROOT

PROGRAM = """
import numpy as np
import torch
import i3d

model: i3d.I3D = i3d.load("rgb_imagenet_kinetics400")
frames: np.ndarray = i3d.read_video("cricket.mp4")
clip: torch.Tensor = i3d.rgb_clip(frames)
logits: torch.Tensor = model(clip[None])

predictor = i3d.Predictor(model, device="cpu")
one = predictor(frames, every_seconds=2.56)
for segment in one.segments:
    start: float = segment.start_seconds
    name: str | None = segment.name
for each in predictor(["a.mp4", b"...", frames, torch.zeros(9, 256, 256, 3, dtype=torch.uint8)]):
    best: str = each.predictions[0].name
whole: float | None = i3d.predict("a.mp4", model, top_k=3).duration
"""
WRONG = """
segment.probability + 1  # None where nobody is sure
predictor(3)
i3d.predict("a.mp4", every=2)
predictor("a.mp4", every=2)
one.segment
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.iterdir()
    with zipfile.ZipFile(built) as archive:
        return {member.filename: member.file_size for member in archive.infolist()}


def test_the_wheel_says_that_it_has_types(wheel):
    assert "i3d/py.typed" in wheel


def test_the_wheel_has_all_that_the_program_reads(wheel):
    """Templates, class names, networks and kernels, beside the modules; and nothing else."""
    tracked = subprocess.run(
        ["git", "ls-files", "i3d"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout: nothing says which files belong to the package")
    inside = {name for name in wheel if name.startswith("i3d/")}
    assert inside == set(tracked)


def check_types(tmp_path, program):
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent",
         "--cache-dir", str(ROOT / ".mypy_cache" / "user"), str(path)],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return [
        line for line in done.stdout.splitlines() if "program.py" in line or done.returncode > 1
    ]


def test_a_users_program_has_types(tmp_path):
    assert check_types(tmp_path, PROGRAM) == []


def test_a_users_mistakes_are_seen(tmp_path):
    first = len(PROGRAM.splitlines()) + 1
    lines = check_types(tmp_path, PROGRAM + WRONG)
    places = {int(line.split(":")[1]) for line in lines if "error" in line}
    assert places == {first + i for i in range(1, 6)}, lines
