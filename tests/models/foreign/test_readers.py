"""Checkpoints of other programs: the same logits, and hostile ones refused."""

import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import bundles
from support.golden import golden, shared
from support.paths import ROOT

from i3d.errors import CheckpointError
from i3d.models.checkpoints import build, load, read_weights
from i3d.models.foreign.names import CHAINER
from i3d.models.i3d import I3D
from i3d.records import plain
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


def npz_with(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A right file with another member in the place of the first filter's."""
    buffer = io.BytesIO(npz(**{W: None}))
    with zipfile.ZipFile(buffer, "a", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def npy(header: bytes, version: bytes = b"\1\0", size: int | None = None) -> bytes:
    """A .npy file of zeros whose header is this, and says it has that size."""
    length = (len(header) if size is None else size).to_bytes(2 * version[0], "little")
    return b"\x93NUMPY" + version + length + header + bytes(4 * 8 * 3 * 7**3)


def npy_of(descr: str, shape: str = "(8, 3, 7, 7, 7)") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode())


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


UNIT = "conv3d_1a_7x7"
W = f"{UNIT}/conv3d/conv/W"


WRONG_NPZ = {
    "not a readable .npz": lambda: b"PK\x03\x04 but no more",
    "not a readable .npz file (File is not": lambda: b"",
    "holds a pickle, which is never loaded": lambda: npz(**{W: np.array([Evil()], object)}),
    "conv3d_1a_7x7/conv3d/conv/W first": lambda: npz(**{W: None}),
    "has dtype <U3": lambda: npz(**{W: np.array(["abc"])}),
    "does not fit": lambda: npz(**{"mixed_4b/branch_0_conv3d_0a_1x1/bn/beta": np.zeros(3, "f4")}),
    "unknown variables, bomb first": npz_bomb,
    "W.npy' is compressed by BZIP2": lambda: npz_with(f"{W}.npy", npy_of("'<f4'"), 12),
    "W.npy' is compressed by LZMA": lambda: npz_with(f"{W}.npy", npy_of("'<f4'"), 14),
    "conv/W' is no array, whose name ends in .npy": lambda: npz_with(W, npy_of("'<f4'")),
    "'a\\nb' is no array": lambda: npz_with("a\nb", b""),
    "W is not a plain array (EOF": lambda: npz_with(f"{W}.npy", b""),
    "W is not a plain array (('EOF": lambda: npz_with(f"{W}.npy", npy(b"{" * 9000)),
    "W is not a plain array (malformed": lambda: npz_with(f"{W}.npy", npy_of("'<f4'", "(10**9,)")),
    "W is not a plain array (EOF: reading array header": lambda: npz_with(
        f"{W}.npy", npy(b" " * 9000, b"\2\0", size=(1 << 32) - 1)
    ),
    "W is not a plain array (not enough values": lambda: npz_with(f"{W}.npy", npy_of("[['a']]")),
    "W has dtype [('a', '<f4')]": lambda: npz_with(f"{W}.npy", npy_of("[('a', '<f4')]")),
    "W has dtype int32; save it as float32": lambda: npz_with(f"{W}.npy", npy_of("'<i4'")),
    "bytes do not fit its shape (1,)": lambda: npz_with(f"{W}.npy", npy_of("'<f4'", "(1,)")),
    "bn/N is -1, and no count": lambda: npz(**{f"{UNIT}/bn/N": np.array(-1)}),
    "bn/N is nan, and no count": lambda: npz(**{f"{UNIT}/bn/N": np.array(np.nan)}),
    "bn/N is 1e+30, and no count": lambda: npz(**{f"{UNIT}/bn/N": np.array(1e30)}),
    "bn/avg_var holds a negative variance: 1 of 8, the first -0.25 at [2]": lambda: npz(
        **{f"{UNIT}/bn/avg_var": np.eye(1, 8, 2, "f4")[0] * -0.25}
    ),
}


@pytest.mark.parametrize("words", WRONG_NPZ)
def test_a_wrong_npz_is_one_clear_error(tmp_path, words):
    path = tmp_path / "x.npz"
    path.write_bytes(WRONG_NPZ[words]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
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
    assert "weights_only" not in str(caught.value)  # torch.load's own words say to leave it out


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


def state_with(**changes) -> dict[str, object]:
    return foreign_state(bundles.small_model(), "pytorch-i3d") | changes


def refusal_of(path) -> str:
    """The one line by which a file is refused, without warnings."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.to(torch.float8_e4m3fn), "dtype float8_e4m3fn; save it as float32"),
        (lambda w: w.to_sparse(), "dtype sparse float32"),
        (lambda w: torch.eye(3).to_sparse_csr(), "dtype sparse float32"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "dtype quantized qint8"),
        (lambda w: w.to("meta"), "dtype meta float32, without content"),
        (lambda w: torch.nested.nested_tensor([w[0], w[1]]), "dtype nested float32"),
        (lambda w: w.to(torch.complex64), "dtype complex64"),
        (lambda w: w.to(torch.complex32), "dtype complex32"),
        (lambda w: w.int(), "dtype int32"),
        (lambda w: w.bool(), "dtype bool"),
        (lambda w: 1.5, "is no tensor, but of type float"),
        (lambda w: None, "is no tensor, but of type NoneType"),
        (lambda w: w.double() * 1e300, "8,232 of 8,232, the first"),
    ],
)
def test_what_is_no_weight_is_named(tmp_path, change, words):
    key = "Conv3d_1a_7x7.conv3d.weight"
    state = state_with()
    torch.save(state | {key: change(state[key])}, tmp_path / "x.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = refusal_of(tmp_path / "x.pt")
    assert f"{key} " in message
    assert words in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_become_float32_and_the_source_says_so(tmp_path, dtype, suffix):
    path = tmp_path / f"x{suffix}"
    # Counters too: so it is where every tensor of a state dict is converted.
    state = {key: tensor.to(dtype) for key, tensor in state_with().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    weights = read_weights(path)
    name = str(dtype).removeprefix("torch.")
    assert weights.config.source == f"PyTorch: pytorch-i3d, converted from {name}"
    for key, tensor in bundles.small_model().state_dict().items():
        if "num_batches" not in key:
            assert weights.tensors[key].dtype == torch.float32
            assert torch.equal(weights.tensors[key], tensor.to(dtype).float()), key


def test_a_file_of_ours_in_bfloat16_is_not_the_network_that_its_source_names(tmp_path):
    model = bundles.small_model(source="where it comes from")
    state = {key: tensor.bfloat16() for key, tensor in model.state_dict().items()}
    metadata = {"i3d": json.dumps(plain(model.config))}
    save_file(state, tmp_path / "x.safetensors", metadata=metadata)
    source = read_weights(tmp_path / "x.safetensors").config.source
    assert source == "where it comes from, converted from bfloat16"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (torch.tensor(torch.nan), "is nan, and no count of batches; leave it out, or set it to 0"),
        (torch.tensor(torch.inf), "is inf, and no count"),
        (torch.tensor(1e30), "is 1e+30, and no count"),
        (torch.tensor(5.5), "is 5.5, and no count"),
        (torch.tensor(-3), "is -3, and no count"),
        (torch.tensor(1j), "has dtype complex64; save it as int64"),
        (torch.tensor(True), "has dtype bool; save it as int64"),
        (torch.ones(2), r"has shape (2,), which does not fit ()"),
        (3, "is no tensor, but of type int"),
    ],
)
def test_a_counter_counts(tmp_path, count, words):
    key = "Conv3d_1a_7x7.bn.num_batches_tracked"
    torch.save(state_with(**{key: count}), tmp_path / "x.pt")
    assert f"{key} {words}" in refusal_of(tmp_path / "x.pt")


@pytest.mark.parametrize("factor", [1e300, -1e45])
def test_a_scale_that_takes_weights_beyond_float32(tmp_path, factor):
    key = "Conv3d_1a_7x7.bn.weight"
    torch.save(
        state_with(**{key: torch.full((8,), factor, dtype=torch.float64)}), tmp_path / "x.pt"
    )
    expected = f"{key} times conv.weight holds values that are not finite: 8,232 of 8,232, the"
    assert expected in refusal_of(tmp_path / "x.pt")


def test_the_first_wrong_value_is_named(tmp_path):
    for key, index in (
        ("Conv3d_1a_7x7.bn.weight", (3,)),
        ("Mixed_3b.b1b.conv3d.weight", (2, 1, 0, 2, 1)),
    ):
        state = state_with()
        state[key] = state[key].clone()
        state[key][index] = torch.nan
        torch.save(state, tmp_path / "x.pt")
        place = ", ".join(map(str, index))
        words = f": 1 of {state[key].numel():,}, the first nan at [{place}]; fetch it again"
        assert f"{key} holds values that are not finite{words}" in refusal_of(tmp_path / "x.pt")


def test_one_name_with_data_parallels_prefix_and_without(tmp_path):
    key = "Conv3d_1a_7x7.conv3d.weight"
    torch.save(state_with(**{f"module.{key}": torch.zeros(1)}), tmp_path / "x.pt")
    assert f"{key} is there with module. and without" in refusal_of(tmp_path / "x.pt")


def test_an_unknown_name_is_shown_on_one_line(tmp_path):
    torch.save(state_with(**{"a\nb": torch.zeros(1)}), tmp_path / "x.pt")
    assert r"unknown variables, 'a\nb' first" in refusal_of(tmp_path / "x.pt")


def peak_memory(path, kind="VmHWM") -> int:
    """MiB that a process has while it fails to read a file, beyond what it has before."""
    script = (
        "import re, sys; from i3d.errors import CheckpointError\n"
        "from i3d.models.checkpoints import read_weights\n"
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        f"    return int(re.search(r'{kind}:\\s+(\\d+) kB', status)[1]) >> 10\n"
        "before = peak()\n"
        "try: read_weights(sys.argv[1])\n"
        "except CheckpointError: print(peak() - before)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def compressed(path, name: str, size: int) -> None:
    """Add a member of zeros to an archive."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w") as f,
    ):
        for _ in range(size >> 20):
            f.write(bytes(1 << 20))


def test_a_compressed_state_dict_takes_no_memory(tmp_path):
    """torch.load alone would take the 256 MiB."""
    torch.save(state_with(), tmp_path / "right.pt")
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(tmp_path / "right.pt") as right, zipfile.ZipFile(path, "w") as archive:
        for member in right.infolist():
            if not member.filename.endswith("/data/0"):
                archive.writestr(member.filename, right.read(member))
    compressed(path, "right/data/0", 256 << 20)
    assert path.stat().st_size < 2 << 20
    words = "not a PyTorch file of tensors alone (member 'right/data/0' is compressed by DEFLATE"
    assert words in refusal_of(path)
    assert peak_memory(path) < 100  # measured 0; torch.load alone: 256 and more


def test_members_that_share_bytes_are_refused(tmp_path):
    """A list of members may name one place again and again."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1 << 18)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, members = archive.start_dir, archive.infolist()
    end = data.rindex(b"PK\6\6")
    listed = data[start:end]
    more = listed * 20  # with other names of the same length, so that none is there twice
    parts = [
        more[i * len(listed) :][: len(listed)].replace(b"x/", b"%c/" % (97 + i)) for i in range(20)
    ]
    directory = b"".join(parts)
    count = 20 * len(members)
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + tail)
    assert re.search(r"members of [\d,]+ bytes in a file of", refusal_of(path))


def test_a_pickle_of_before_pytorch_1_6_cannot_enlarge_its_storages(tmp_path):
    """It says that a storage has 2^28 floats and a tensor one more, in 371 bytes."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    numel = struct.pack("<i", 1 << 28)
    more = struct.pack("<i", (1 << 28) + 1)
    data = path.read_bytes().replace(b"K\x04Nt", b"J" + numel + b"Nt")
    path.write_bytes(data.replace(b"K\x00K\x04\x85", b"K\x00J" + more + b"\x85"))
    assert "shape (268435457,) in a storage of 1,073,741,824 bytes" in refusal_of(path)
    assert peak_memory(path) < 200  # measured 74; torch.load alone: 1,100


def test_a_pickle_of_before_pytorch_1_6_asks_for_no_more_than_it_has(tmp_path):
    """It says that a name has 2 GiB."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    name = b"X\x01\0\0\0w"
    data = path.read_bytes()
    assert name in data
    path.write_bytes(data.replace(name, b"X\xff\xff\xff\x7fw"))
    assert "not a PyTorch file" in refusal_of(path)
    assert peak_memory(path, "VmPeak") < 400  # measured 0; torch.load alone: 2,048


def test_an_npz_of_more_than_a_network_needs_takes_no_memory(tmp_path):
    """Its shapes fit one another: width 4, and classes whose filters alone have 0.8 GB."""
    path = tmp_path / "x.npz"
    with torch.device("meta"):
        wide = {n: t.shape for n, t in I3D("rgb", 50_000, width=4.0).state_dict().items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED):
        pass
    for name, shape in wide.items():
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        )
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            info = zipfile.ZipInfo(f"{CHAINER.key(name)}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, header.getvalue())
    declare_sizes(path, {f"{CHAINER.key(n)}.npy": 4 * int(np.prod(wide[n])) for n in wide})
    words = "a network of width 4 with 50,000 classes has 1,6"
    assert words in refusal_of(path)


def declare_sizes(path, more: dict[str, int]) -> None:
    """Let members declare that many bytes more than they have."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
        for member in archive.infolist():
            assert data[at : at + 4] == b"PK\1\2"
            size = member.file_size + more[member.filename]
            data[at + 24 : at + 28] = struct.pack("<I", size)
            name, extra, comment = struct.unpack_from("<3H", data, at + 28)
            at += 46 + name + extra + comment
    path.write_bytes(data)


def test_declared_sizes_are_not_trusted(tmp_path):
    """A member that ends before its declared size, and one that goes on behind it."""
    content = io.BytesIO()
    np.save(content, bundles.small_model().state_dict()["Conv3d_1a_7x7.conv.weight"].numpy())
    data = content.getvalue()
    path = tmp_path / "x.npz"
    for change in (-4, 200 << 20):
        longer = data + bytes(max(change, 0)) if change > 0 else data[:change]
        path.write_bytes(npz_with(f"{W}.npy", longer, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(path) as archive:
            others = {m.filename: 0 for m in archive.infolist()}
        declare_sizes(path, others | {f"{W}.npy": -change})
        assert f"{W} is damaged" in refusal_of(path)
        assert peak_memory(path) < 100  # measured 1; read at once: 404
