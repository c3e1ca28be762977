"""What a run begins with: checkpoints and inflated weights, and their classifiers."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.googlenet import googlenet
from support.training import CLASSES, QUICK, checkpoint, weights

import i3d
from i3d.tasks.train import train


def test_an_old_head_stays_and_a_new_one_begins(run, tmp_path, capsys):
    name = "Logits.Conv3d_0c_1x1.weight"

    def notes(init):
        _, folder = run(
            f"from-{init.stem}", init=str(init), steps=1, epochs=None, learning_rate=1e-9
        )
        return weights(folder)[name], i3d.load(folder / "last.safetensors")

    same = checkpoint(tmp_path, "same")
    kept, model = notes(same)
    torch.testing.assert_close(kept, load_file(same)[name], rtol=0, atol=1e-6)
    assert model.classes == CLASSES and "start" not in model.source
    other = checkpoint(tmp_path, "other", classes="kinetics400", num_classes=400)
    replaced, model = notes(other)
    assert replaced.shape[0] == 3 and model.classes == CLASSES
    trunk = "Mixed_4b.Branch_0.Conv3d_0a_1x1.conv.weight"
    torch.testing.assert_close(
        model.get_submodule("Mixed_4b.Branch_0.Conv3d_0a_1x1").conv.weight.shape,
        load_file(other)[trunk].shape,
    )
    renamed = checkpoint(tmp_path, "renamed", classes=("archery", "clapping", "bowling"))
    assert not torch.allclose(notes(renamed)[0], load_file(renamed)[name])
    unnamed = checkpoint(tmp_path, "unnamed", classes=None)
    torch.testing.assert_close(notes(unnamed)[0], load_file(unnamed)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("classes", "kept"), [(3, True), (5, False)])
def test_inflated_weights_begin_a_run(shards, tmp_path, capsys, classes, kept):
    state = googlenet(classes=classes)
    save_file(state, tmp_path / "google.safetensors")
    options = replace(QUICK, width=None, steps=1, epochs=None, learning_rate=1e-9)
    for stream in ("rgb", "flow"):
        init = f"inflate:{tmp_path / 'google.safetensors'}"
        train(
            shards,
            stream=stream,
            output=tmp_path / stream,
            init=init,
            options=options,
            progress=True,
        )
        said = capsys.readouterr().err
        assert ("with its classifier" if kept else "is replaced by a new one") in said
        tensors = weights(tmp_path / stream)
        middle = tensors["Conv3d_2c_3x3.conv.weight"][:, :, 1]
        scaled = state["conv3.conv.weight"] * state["conv3.bn.weight"].view(-1, 1, 1, 1)
        torch.testing.assert_close(middle * 3, scaled, rtol=1e-4, atol=1e-5)
        head = tensors["Logits.Conv3d_0c_1x1.bias"]
        assert torch.allclose(head, state["fc.bias"][:3], atol=1e-5) == kept
