"""Messages are fit to be shown, whatever they repeat of a file from outside."""

import json

import pytest
from support.bundles import small_model

import i3d
from i3d.cli import main
from i3d.console import say, show
from i3d.errors import MAX_CHARACTERS, CheckpointError, I3DError, UsageError, shown
from i3d.models.checkpoints import save

CLEAR = "\x1b[2J"  # empties a terminal's screen


def test_what_a_terminal_obeys_is_escaped():
    text = shown(f"{CLEAR}\x9b\x00\x7f\u202e\ud800\u2028\t日本 é\n")
    assert text == r"\x1b[2J\x9b\x00\x7f\u202e\ud800\u2028\t日本 é" + "\n"
    text.encode()


@pytest.mark.parametrize("error", [I3DError, CheckpointError, UsageError])
def test_no_error_holds_it(error):
    made = error(f"x.pt: its key {CLEAR} is unknown")
    assert str(made) == r"x.pt: its key \x1b[2J is unknown"
    assert made.args == (str(made),)  # as other processes get it


def test_a_long_message_keeps_its_ends():
    """The file's name comes first, the remedy last."""
    text = str(I3DError(f"/data/x.onnx: input {'x' * 50_000} is unknown; export it again"))
    assert len(text) <= MAX_CHARACTERS
    assert text.startswith("/data/x.onnx: input xxx") and text.endswith("; export it again")
    assert str(I3DError("x" * MAX_CHARACTERS)) == "x" * MAX_CHARACTERS


class Outcome:
    def as_dict(self):
        return {"class": CLEAR}

    def __str__(self):
        return f"one {CLEAR}\ntwo"


def test_what_commands_print(capsys):
    """A class name of a checkpoint, say; JSON escapes it by itself."""
    show(Outcome(), as_json=False)
    show(Outcome(), as_json=True)
    say(CLEAR)
    captured = capsys.readouterr()
    text, document = captured.out.split("{", 1)
    assert text == "one \\x1b[2J\ntwo\n"
    assert json.loads("{" + document) == {"class": CLEAR}
    assert captured.err == "\\x1b[2J\n"


def test_the_command_line(tmp_path, capsys):
    path = tmp_path / f"a{CLEAR}.safetensors"
    save(small_model(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(path), str(tmp_path / "b.npz")])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.removesuffix("\n").isprintable()
    assert r"a\x1b[2J.safetensors" in error and len(error.splitlines()) == 1
    with pytest.raises(CheckpointError, match=r"\\x1b\[2J"):
        i3d.load(path)
