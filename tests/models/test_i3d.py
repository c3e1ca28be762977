"""The network against the original TensorFlow graph, and what a caller can rely on."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.bundles import small_model
from support.golden import golden
from torch.utils._python_dispatch import TorchDispatchMode

from i3d.errors import I3DError
from i3d.models import i3d as i3d_module
from i3d.models.i3d import ENDPOINTS, I3D, TABLE, BatchNorm

GOLDEN = [
    ("rgb400", "rgb16a"),
    ("rgb400", "rgb16b"),
    ("rgb400", "rgb23odd"),
    ("flow400", "flow16a"),
    ("flow400", "flow16b"),
    ("flow400", "flow21odd"),
    ("rgb600", "rgb16a"),
    ("rgb600", "rgb16b"),
    ("rgb600", "rgb23odd"),
]


@pytest.mark.parametrize(("checkpoint", "input_name"), GOLDEN)
def test_every_endpoint_is_the_original_graphs(model_of, checkpoint, input_name):
    g = golden(checkpoint, input_name)
    with torch.inference_mode():
        ends = model_of(checkpoint).endpoints(g.clip)
    assert list(ends) == list(ENDPOINTS)
    for name, _ in TABLE:
        ours = ends[name].permute(0, 2, 3, 4, 1).numpy()  # (N, C, T, H, W) -> (N, T, H, W, C)
        assert list(ours.shape) == list(g.outputs[f"{name}/shape"])
        np.testing.assert_allclose(
            ours.reshape(-1)[g.outputs[f"{name}/flat"]],
            g.outputs[f"{name}/values"],
            atol=4e-4,  # measured 1.4e-4 at most, fp32 CPU
            err_msg=name,
        )
        assert ours.mean(dtype=np.float64) == pytest.approx(g.outputs[f"{name}/mean"], abs=1e-5)
        assert ours.std(dtype=np.float64) == pytest.approx(g.outputs[f"{name}/std"], abs=1e-5)
    # measured 2.7e-4 at most, where logits reach ±18; float16 weights cost 6e-2
    np.testing.assert_allclose(ends["Logits"].numpy(), g.outputs["logits"], atol=5e-4)
    np.testing.assert_allclose(ends["Predictions"].numpy(), g.outputs["predictions"], atol=1e-4)


def test_grid_sized_input_agrees_up_to_the_pooling(model_of):
    # 198x230 gives a 7x8 map: the original's 7x7 pooling would leave a grid, ours is global.
    g = golden("rgb400", "rgb23wide")
    with torch.inference_mode():
        ends = model_of("rgb400").endpoints(g.clip, ["Mixed_5c", "Logits"])
    map_5c = ends["Mixed_5c"].permute(0, 2, 3, 4, 1).numpy()
    assert map_5c.shape == (1, 3, 7, 8, 1024)
    values = map_5c.reshape(-1)[g.outputs["Mixed_5c/flat"]]
    np.testing.assert_allclose(values, g.outputs["Mixed_5c/values"], atol=2e-4)  # measured 5.9e-5
    # The original's head, rebuilt on our map, gives its grid; ours averages the whole space.
    windows = torch.nn.functional.avg_pool3d(ends["Mixed_5c"], (2, 7, 7), stride=1)
    grid = model_of("rgb400").Logits.Conv3d_0c_1x1(windows).mean(2)  # (1, 400, 1, 2)
    expected = g.outputs["logits"].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(grid.detach().numpy(), expected, atol=5e-4)
    features = ends["Mixed_5c"].mean((3, 4))
    features = (features[:, :, :-1] + features[:, :, 1:]) / 2
    assert ends["Logits"].shape == (1, 400)
    torch.testing.assert_close(ends["Logits"], model_of("rgb400").Logits(features))


def test_features_feed_the_classifier(model_of):
    g = golden("rgb400", "rgb23odd")
    model = model_of("rgb400")
    with torch.inference_mode():
        features = model.features(g.clip)
        ends = model.endpoints(g.clip, ["Logits", "Mixed_5c"])
    assert features.shape == (1, 1024, 2)  # ceil(23 / 8) - 1
    assert list(ends) == ["Logits", "Mixed_5c"]
    pooled = torch.nn.functional.avg_pool3d(ends["Mixed_5c"], (2, 7, 7), stride=1)
    torch.testing.assert_close(features, pooled[..., 0, 0], atol=1e-5, rtol=0)
    classifier = model.Logits.Conv3d_0c_1x1
    logits = features.mean(2) @ classifier.weight[:, :, 0, 0, 0].T + classifier.bias
    torch.testing.assert_close(logits, ends["Logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [9, 10, 17, 33])
@pytest.mark.parametrize("size", [(32, 45), (97, 64)])
def test_any_length_and_size_gives_logits(frames, size):
    model = I3D("flow", 5, width=0.125).eval()
    clip = torch.zeros(2, 2, frames, *size)
    ends = model.endpoints(clip, ["Mixed_5c", "Logits"])
    expected = [-(-frames // 8), *(-(-n // 32) for n in size)]
    assert list(ends["Mixed_5c"].shape) == [2, 128, *expected]
    assert ends["Logits"].shape == (2, 5)
    assert model.features(clip).shape == (2, 128, expected[0] - 1)


@pytest.mark.parametrize("frames", [161, 168, 170, 175, 229])
def test_long_clip_in_windows_is_the_whole(frames, monkeypatch):
    """In double precision, where what a window does not see stands out from rounding."""
    monkeypatch.setattr(i3d_module, "WINDOW_FRAMES", 64)
    model = small_model().fold().double()
    clip = torch.rand(1, 3, frames, 24, 40, dtype=torch.float64) * 2 - 1
    whole = model.features(clip)  # with gradients switched on nothing is cut
    with torch.inference_mode():
        assert (model.features(clip) - whole).abs().max() < 1e-12  # measured 5e-16
        assert (model(clip) - model.Logits(whole)).abs().max() < 1e-12
        monkeypatch.setattr(i3d_module, "HALO_FRAMES", 40)
        assert (model.features(clip) - whole).abs().max() > 1e-6  # measured 9.9e-6


def test_table_has_the_papers_channels_and_parameters():
    model = I3D(num_classes=400)
    # The released RGB bundle holds 50,818,176 bytes in 230 tensors, the flow bundle 50,730,368.
    floats = sum(t.numel() for t in model.state_dict().values() if t.is_floating_point())
    assert floats * 4 == 50_818_176
    flow = I3D("flow", 400)
    floats = sum(t.numel() for t in flow.state_dict().values() if t.is_floating_point())
    assert floats * 4 == 50_730_368


def test_width_scales_every_layer():
    wide, narrow = I3D(num_classes=3, width=1.0), I3D(num_classes=3, width=0.5)
    for (name, a), b in zip(wide.state_dict().items(), narrow.state_dict().values(), strict=True):
        if a.ndim == 5 and "Logits" not in name:
            assert b.shape[0] * 2 == a.shape[0], name
    assert narrow.Logits.Conv3d_0c_1x1.in_channels == 512


def test_initialisation_is_sonnets():
    torch.manual_seed(0)
    model = I3D(num_classes=400)
    weight = model.Conv3d_2c_3x3.conv.weight.detach()
    deviation = (64 * 27) ** -0.5
    assert float(weight.abs().max()) <= 2 * deviation
    # A normal cut at two deviations has 0.8796 of its standard deviation (closed form).
    assert float(weight.std()) == pytest.approx(0.8796 * deviation, rel=0.01)
    assert all(bool((p == 0).all()) for n, p in model.named_parameters() if n.endswith("bias"))


def test_batch_norm_trains_as_the_originals():
    model = I3D(num_classes=3, width=0.125).train()
    norm = model.Conv3d_1a_7x7.bn
    clip = torch.randn(2, 3, 9, 32, 32)
    model(clip).sum().backward()
    assert norm.weight is None
    assert norm.bias.grad is not None
    assert norm.eps == 1e-3
    pads = torch.nn.functional.pad(clip, (2, 3, 2, 3, 3, 3))
    x = torch.nn.functional.conv3d(pads, model.Conv3d_1a_7x7.conv.weight, stride=2)
    expected = 0.001 * x.mean((0, 2, 3, 4))  # decay 0.999 from 0
    torch.testing.assert_close(norm.running_mean, expected, atol=1e-6, rtol=1e-4)


class CudaBatchNorm(TorchDispatchMode):
    """What PyTorch's CUDA kernel for channels last does where BatchNorm has no scale.

    Of ``batch_norm_backward_reduce_cuda_channels_last_template`` (aten/native/cuda): where the
    weight is not defined, the gradients of weight and bias have no elements.
    """

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_batch_norm_backward.default:
            self.calls += 1
            if args[2] is None:
                empty = args[1].new_empty(0)
                return result[0], empty, empty
        return result


@pytest.mark.parametrize("training", [True, False])
def test_every_offset_learns_with_cudas_batch_norm(training):
    model = I3D(num_classes=3, width=0.125).train(training)
    clip = torch.randn(2, 3, 9, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    with CudaBatchNorm() as cuda:
        model(clip).square().sum().backward()
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    assert cuda.calls == len(norms) == 57
    assert all(norm.bias.grad.shape == norm.bias.shape for norm in norms)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batch_norm_has_the_bits_of_one_without_a_scale(training, layout, dtype):
    """Forward, gradients and statistics; bfloat16 as autocast has it, with float32 parameters."""
    torch.manual_seed(0)
    channels = 20  # not a multiple of a vector's width
    norm = BatchNorm(channels).train(training)
    if dtype == torch.float64:
        norm.double()
    norm.bias.data.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    bias = norm.bias.detach().clone().requires_grad_()
    x = torch.randn(2, channels, 5, 7, 6, dtype=dtype).contiguous(memory_format=layout)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    factors = torch.randn_like(x)
    found = norm(ours)
    expected = F.batch_norm(theirs, mean, variance, None, bias, training, norm.momentum, norm.eps)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    assert torch.equal(found, expected)
    assert torch.equal(ours.grad, theirs.grad)
    assert torch.equal(norm.bias.grad, bias.grad)
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, variance)
    assert int(norm.num_batches_tracked) == training


def test_batch_norm_keeps_nothing_of_a_scale():
    """In no checkpoint, no optimizer and no copy; and compiled it gives the same bits."""
    norm = BatchNorm(3).train()
    assert list(dict(norm.named_parameters())) == ["bias"]
    assert list(norm.state_dict()) == ["bias", *dict(norm.named_buffers())]
    assert list(dict(norm.named_buffers())) == [
        *("running_mean", "running_var", "num_batches_tracked"),
    ]
    x = torch.randn(2, 3, 4, 5, 5)
    expected = copy.deepcopy(norm)(x)
    assert torch.equal(torch.compile(copy.deepcopy(norm), backend="eager")(x), expected)
    assert norm.double()(x.double()).dtype == torch.float64


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = I3D(num_classes=3, width=0.125, dropout=0.5)
    clip = torch.randn(1, 3, 9, 32, 32)
    features = torch.ones(1, 128, 50)
    kept = model.train().dropout(features)
    assert float((kept == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    model.eval()
    torch.testing.assert_close(model(clip), model(clip), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (torch.zeros(1, 3, 8, 32, 32), ["8 frames", "at least 9", "longer"]),
        (torch.zeros(3, 16, 32, 32), ["(3, 16, 32, 32)", "clip[None]"]),
        (torch.zeros(1, 2, 16, 32, 32), ["2 channels", "rgb network takes 3"]),
        (torch.zeros(1, 16, 32, 32, 3), ["16 channels", "second place"]),
        (torch.zeros(1, 3, 16, 32, 32, dtype=torch.uint8), ["uint8", "[-1, 1]"]),
        (torch.zeros(1, 3, 16, 0, 32), ["empty"]),
        (torch.zeros(0, 3, 16, 32, 32), ["empty"]),
    ],
)
def test_a_clip_that_does_not_fit_is_a_clear_error(clip, words):
    with pytest.raises(I3DError) as caught:
        I3D(num_classes=2, width=0.125)(clip)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"stream": "depth", "num_classes": 2},
        {"num_classes": 0},
        {},
        {"num_classes": 399, "classes": "kinetics400"},
        {"num_classes": 2, "width": 0.0},
        {"num_classes": 2, "width": float("nan")},
        {"num_classes": 2, "bn_eps": 0.0},
    ],
)
def test_a_network_that_cannot_be_is_a_clear_error(arguments):
    with pytest.raises(I3DError):
        I3D(**arguments)


def test_unknown_endpoint_lists_the_known_ones():
    with pytest.raises(I3DError, match=r"Mixed_6a.*Mixed_5c"):
        I3D(num_classes=2, width=0.125).endpoints(torch.zeros(1, 3, 9, 32, 32), ["Mixed_6a"])


def test_class_names_come_with_the_network(model_of):
    assert model_of("rgb400").classes[:2] == ("abseiling", "air drumming")
    assert I3D(classes=["a", "b"]).classes == ("a", "b")
    assert I3D(num_classes=2).classes == ("class 0", "class 1")
    assert len(I3D(classes="kinetics600", width=0.125).classes) == 600
