"""Checkpoints of other programs: the same logits, and hostile ones refused."""

import io
import pickle
import re
import resource
import zipfile

import numpy as np
import pytest
import torch
from support import bundles
from support.golden import golden, shared

from i3d.errors import CheckpointError
from i3d.models.checkpoints import build, load, read_weights
from i3d.models.foreign.names import CHAINER
from i3d.tasks.convert import convert as convert_file

CLIP = torch.rand(1, 3, 17, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def logits(path, clip=CLIP, **options) -> torch.Tensor:
    with torch.inference_mode():
        return build(read_weights(path, **options))(clip)


@pytest.mark.parametrize("scope", ["RGB/inception_i3d/", "Flow/inception_i3d/", "", "my/own/"])
@pytest.mark.parametrize("width", [0.125, 0.3, 1.0])
def test_bundle_of_any_scope_and_width_gives_the_same_network(tmp_path, scope, width):
    stream = "flow" if scope.startswith("Flow") else "rgb"
    model = bundles.small_model(stream=stream, width=width)
    variables = bundles.tensorflow_variables(model, scope)
    # Slots, counters and, as in the Kinetics-600 bundle, BatchNorm of shape [1, 1, 1, 1, C].
    first = f"{scope}Conv3d_1a_7x7/"
    variables[f"{first}conv_3d/w/Momentum"] = np.full((3, 5), np.nan, "<f4")
    variables["global_step"] = np.float32(3).reshape(())
    if not scope:
        for name in variables:
            if "batch_norm" in name:
                variables[name] = variables[name].reshape(1, 1, 1, 1, -1)
    weights = read_weights(bundles.write(tmp_path, variables))
    assert weights.config.stream == stream
    assert weights.config.num_classes == 7
    assert weights.config.classes is None
    state = model.state_dict()
    assert list(weights.tensors) == list(state)
    for name, tensor in weights.tensors.items():
        assert torch.equal(tensor, state[name]), name


def test_a_saved_model_with_a_compressed_index_gives_the_same_network(tmp_path):
    """As TF-Hub has its modules: a folder, Snappy, BatchNorm of shape [1, 1, 1, 1, C]."""
    model = bundles.small_model(num_classes=400)
    variables = {
        name: array.reshape(1, 1, 1, 1, -1) if "batch_norm" in name else array
        for name, array in bundles.tensorflow_variables(model).items()
    }
    plain = bundles.write(tmp_path / "plain", variables)
    prefix = bundles.write(
        tmp_path / "hub" / "variables", variables, compression=1, compress=bundles.snappy
    )
    for path in prefix.parent.iterdir():
        path.rename(path.with_name(path.name.replace("model.ckpt", "variables")))
    (tmp_path / "hub" / "saved_model.pb").write_bytes(b"not read")
    index = tmp_path / "hub" / "variables" / "variables.index"
    assert index.stat().st_size < 0.6 * (tmp_path / "plain" / "model.ckpt.index").stat().st_size
    weights = read_weights(tmp_path / "hub")
    assert (weights.config.stream, weights.config.num_classes) == ("rgb", 400)
    for name, tensor in read_weights(plain).tensors.items():
        assert torch.equal(weights.tensors[name], tensor), name
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_one_network_of_tf_hubs_index_is_found(tmp_path):
    """Its shapes are those of I3D, so the data are looked into; these are zeros."""
    index = shared("reference", "tfhub", "variables.index")
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").write_bytes(index.read_bytes())
    data = tmp_path / "variables" / "variables.data-00000-of-00001"
    with data.open("wb") as f:
        f.truncate(50_818_176)  # sparse
    first = "RGB/inception_i3d/Conv3d_1a_7x7/batch_norm/beta"
    with pytest.raises(CheckpointError, match=f"{data.name}: wrong CRC32C of {first} "):
        read_weights(tmp_path)


def variables_with(**changes) -> dict[str, np.ndarray]:
    variables = bundles.tensorflow_variables(bundles.small_model(), "")
    for name, array in changes.items():
        if array is None:
            del variables[name]
        else:
            variables[name] = array
    return variables


BETA = "Mixed_4c/Branch_1/Conv3d_0a_1x1/batch_norm/beta"


WRONG_NETWORKS = {
    "variables of an I3D network are missing": {BETA: None},
    "Logits/Conv3d_0c_1x1/conv_3d/b": {"Logits/Conv3d_0c_1x1/conv_3d/b": None},
    "does not fit": {BETA: np.zeros(5, "<f4")},
    "unknown variables, Mixed_4c": {BETA.replace("beta", "gamma"): np.zeros(14, "<f4")},
    "4 channels": {"Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 7, 4, 8), "<f4")},
    "no width": {"Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 7, 3, 9), "<f4")},
    "not 3D": {"Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 3, 8), "<f4")},
    "Conv3d_2b_1x1 are not 3D": {"Conv3d_2b_1x1/conv_3d/w": np.zeros((), "<f4")},
    "not finite": {BETA: np.full(14, np.nan, "<f4")},
    "negative variance": {
        BETA.replace("beta", "moving_variance"): np.full(14, -1, "<f4"),
    },
    "holds 2 networks": {"RGB/Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 7, 3, 8), "<f4")},
}


@pytest.mark.parametrize("words", WRONG_NETWORKS)
def test_another_network_is_a_clear_error(tmp_path, words):
    prefix = bundles.write(tmp_path, variables_with(**WRONG_NETWORKS[words]))
    with pytest.raises(CheckpointError) as caught:
        read_weights(prefix)
    assert words in str(caught.value), str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_bundle_without_an_i3d_network(tmp_path):
    prefix = bundles.write(tmp_path, {"w": np.zeros(3, "<f4")})
    with pytest.raises(CheckpointError, match=r"Conv3d_1a_7x7/conv_3d/w.*not an I3D checkpoint"):
        read_weights(prefix)


@pytest.mark.parametrize("input_name", ["rgb16a", "rgb23odd"])
def test_chainers_file_gives_chainers_logits(input_name):
    path = shared("reference", "tensorflow", "rgb400_chainer.npz")
    model = load(path)
    assert model.classes[6] == "arm wrestling"
    with torch.inference_mode():
        ours = model(golden("rgb400", input_name).clip).numpy()
    with np.load(shared("reference", "tensorflow", "rgb400_chainer_logits.npz")) as z:
        np.testing.assert_allclose(ours, z[input_name], atol=5e-4)  # measured 1.6e-4


def npz(**changes) -> bytes:
    model = bundles.small_model()
    buffer = io.BytesIO()
    arrays = {CHAINER.key(n): t.numpy() for n, t in model.state_dict().items()}
    for key, value in changes.items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = value
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npz_bomb() -> bytes:
    buffer = io.BytesIO(npz())
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as z, z.open("bomb.npy", "w") as f:
        np.lib.format.write_array_header_1_0(
            f, {"descr": "<f4", "fortran_order": False, "shape": (1 << 26,)}
        )
        for _ in range(256):
            f.write(bytes(1 << 20))
    return buffer.getvalue()


class Evil:
    def __reduce__(self):
        return (open, ("/nonexistent-i3d-test/pwned", "w"))


W = "conv3d_1a_7x7/conv3d/conv/W"


WRONG_NPZ = {
    "not a readable .npz": lambda: b"PK\x03\x04 but no more",
    "not a readable .npz file (File is not": lambda: b"",
    "holds a pickle, which is never loaded": lambda: npz(**{W: np.array([Evil()], object)}),
    "conv3d_1a_7x7/conv3d/conv/W first": lambda: npz(**{W: None}),
    "has dtype <U3": lambda: npz(**{W: np.array(["abc"])}),
    "does not fit": lambda: npz(**{"mixed_4b/branch_0_conv3d_0a_1x1/bn/beta": np.zeros(3, "f4")}),
    "unknown variables, bomb first": npz_bomb,
}


@pytest.mark.parametrize("words", WRONG_NPZ)
def test_a_wrong_npz_is_one_clear_error(tmp_path, words):
    path = tmp_path / "x.npz"
    path.write_bytes(WRONG_NPZ[words]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_a_flipped_bit_in_an_npz_is_found(tmp_path):
    data = bytearray(npz())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged|not a readable"):
        read_weights(tmp_path / "x.npz")


def foreign_state(model, naming: str, *, gamma: float | None = 1.0) -> dict[str, torch.Tensor]:
    """A state dict as the other port's class would have it, names written out by its rules."""
    state = {}
    for name, tensor in model.state_dict().items():
        unit, part = name.rsplit(".", 2)[0], name.rsplit(".", 2)[1:]
        path = unit.split(".")
        if unit == "Logits":
            prefix = {"pytorch-i3d": "logits", "hassony2": "conv3d_0c_1x1"}[naming]
            state[f"{prefix}.conv3d.{part[1]}"] = tensor
            continue
        if naming == "pytorch-i3d":
            letters = {
                ("Branch_0", "Conv3d_0a_1x1"): "b0",
                ("Branch_1", "Conv3d_0a_1x1"): "b1a",
                ("Branch_1", "Conv3d_0b_3x3"): "b1b",
                ("Branch_2", "Conv3d_0a_1x1"): "b2a",
                ("Branch_2", "Conv3d_0b_3x3"): "b2b",
                ("Branch_3", "Conv3d_0b_1x1"): "b3b",
            }
            prefix = path[0] if len(path) == 1 else f"{path[0]}.{letters[path[1], path[2]]}"
            norm = "bn"
        else:
            numbers = {
                ("Branch_0", "Conv3d_0a_1x1"): "branch_0",
                ("Branch_1", "Conv3d_0a_1x1"): "branch_1.0",
                ("Branch_1", "Conv3d_0b_3x3"): "branch_1.1",
                ("Branch_2", "Conv3d_0a_1x1"): "branch_2.0",
                ("Branch_2", "Conv3d_0b_3x3"): "branch_2.1",
                ("Branch_3", "Conv3d_0b_1x1"): "branch_3.1",
            }
            block = path[0].lower()
            prefix = block if len(path) == 1 else f"{block}.{numbers[path[1], path[2]]}"
            norm = "batch3d"
        if part[0] == "conv":
            state[f"{prefix}.conv3d.weight"] = tensor
        else:
            state[f"{prefix}.{norm}.{part[1]}"] = tensor
            if part[1] == "running_mean" and gamma is not None:
                state[f"{prefix}.{norm}.weight"] = torch.full_like(tensor, gamma)
    return state


@pytest.mark.parametrize("naming", ["pytorch-i3d", "hassony2"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "module"])
def test_state_dict_of_each_naming_gives_the_same_logits(tmp_path, naming, wrapper):
    model = bundles.small_model()
    state = foreign_state(model, naming)
    if wrapper == "module":
        state = {f"module.{k}": v for k, v in state.items()}
    elif wrapper:
        state = {wrapper: state, "epoch": 3}
    torch.save(state, tmp_path / "x.pt")
    with torch.inference_mode():
        torch.testing.assert_close(logits(tmp_path / "x.pt"), model(CLIP), atol=0, rtol=0)


@pytest.mark.parametrize("naming", ["pytorch-i3d", "hassony2"])
def test_state_dict_from_the_golden_bundle(bundle_folder, tmp_path, naming):
    model = load(bundle_folder("rgb400"), trainable=True)
    torch.save(foreign_state(model, naming), tmp_path / "x.pth")
    g = golden("rgb400", "rgb16a")
    ours = logits(tmp_path / "x.pth", g.clip)
    np.testing.assert_allclose(ours, g.outputs["logits"], atol=5e-4)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_scale_and_epsilon_of_a_port_are_kept(tmp_path, eps, suffix):
    model = bundles.small_model(bn_eps=eps)
    for module in model.modules():  # PyTorch's own BatchNorm with a scale is the reference
        if hasattr(module, "bn"):
            ours, module.bn = module.bn, torch.nn.BatchNorm3d(module.bn.num_features, eps=eps)
            module.bn.load_state_dict(
                {**ours.state_dict(), "weight": torch.full_like(ours.bias, 1.25)}
            )
    model.eval()
    torch.save(
        foreign_state(bundles.small_model(bn_eps=eps), "pytorch-i3d", gamma=1.25),
        tmp_path / "x.pt",
    )
    path = tmp_path / "x.pt"
    options = {"bn_eps": eps}
    if suffix == ".npz":  # whose program has eps 1e-3 and no scale
        convert_file(path, tmp_path / "x.npz", bn_eps=eps)
        path, options = tmp_path / "x.npz", {}
    with torch.inference_mode():
        expected = model(CLIP)
    spread = float(expected.std())
    difference = float((logits(path, **options) - expected).abs().max())
    assert difference < 1e-5 * spread  # measured 1.3e-6
    if eps != 1e-3 and suffix == ".pt":
        wrong = float((logits(path) - expected).abs().max())
        assert wrong > 1e-2 * spread  # measured 2.4e-2: the epsilon matters


def test_a_pickle_is_never_run(tmp_path):
    with (tmp_path / "x.pt").open("wb") as f:
        pickle.dump({"w": Evil()}, f)
    with pytest.raises(CheckpointError, match="not a PyTorch file of tensors alone") as caught:
        read_weights(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript as a whole
@pytest.mark.parametrize("name", ["i3d_torchscript.pt", "x.pth"])
def test_torchscript_is_never_run(tmp_path, monkeypatch, name):
    path = tmp_path / name
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    opened = []
    monkeypatch.setattr(torch, "load", lambda *_, **__: opened.append("torch.load"))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: opened.append("torch.jit.load"))
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: TorchScript, whose code is never run. ")
    assert "--checkpoint rgb_scratch_kinetics400" in message
    assert "model.state_dict()" in message
    assert "\n" not in message
    assert not opened


@pytest.mark.parametrize(
    ("zipped", "tail"),
    [(True, b""), (False, b""), (False, b"PK\5\6" + bytes(18))],
    ids=["zip", "pickle of before PyTorch 1.6", "such a pickle that ends like a zip"],
)
def test_what_is_no_torchscript_goes_to_torch_load(tmp_path, zipped, tail):
    model = bundles.small_model()
    path = tmp_path / "x.pt"
    state = foreign_state(model, "pytorch-i3d")
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes() + tail)
    for name, tensor in read_weights(path).tensors.items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".index"])
def test_garbage_under_every_suffix(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".index", ""])
def test_missing_file(tmp_path, suffix):
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / f"x{suffix}")


def test_state_dict_with_absurd_strides_takes_no_memory(tmp_path):
    state = foreign_state(bundles.small_model(), "pytorch-i3d")
    state["Mixed_4b.b0.conv3d.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20, 1, 1, 1)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="does not fit"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (torch.zeros(1).expand(1 << 40), "has shape \\(1099511627776,\\), which does not fit"),
        (torch.ones(1), "does not fit"),
        (torch.full((8,), torch.nan), "not finite"),
    ],
)
def test_a_scale_is_checked_as_all_the_others(tmp_path, scale, words):
    state = foreign_state(bundles.small_model(), "pytorch-i3d")
    state["Conv3d_1a_7x7.bn.weight"] = scale
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "x.pt")
