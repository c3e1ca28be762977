"""Winograd's algorithm over time against NumPy's correlation and PyTorch's convolution."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i3d.models import winograd
from i3d.models.i3d import I3D, Unit3D


def unit(channels=(48, 24), kernel=3, stride=1, seed=0):
    """A folded layer with filters like a trained one's, and a bias."""
    torch.manual_seed(seed)
    layer = Unit3D(*channels, kernel, stride, bn_eps=1e-3).eval()
    torch.nn.init.normal_(layer.conv.weight, std=(channels[0] * kernel**3) ** -0.5)
    torch.nn.init.normal_(layer.bn.bias)
    layer.fold()
    return layer.requires_grad_(False)


def exact(layer, x):
    """SAME convolution and ReLU in double precision, by PyTorch."""
    return copy.deepcopy(layer).double()(x.double())


@pytest.fixture
def always(monkeypatch):
    """The algorithm is taken for every layer that it is made for; the list of its calls."""
    calls = []
    plain = winograd.convolve
    for name in ("MIN_CHANNELS", "MIN_POSITIONS", "MIN_OPERATIONS"):
        monkeypatch.setattr(winograd, name, 0)

    def counted(x, *rest):
        calls.append(tuple(x.shape))
        return plain(x, *rest)

    monkeypatch.setattr(winograd, "convolve", counted)
    return calls


@pytest.mark.parametrize("taps", [3, 4])
def test_transforms_are_numpys_correlation(taps):
    a, g, b = winograd.transforms(taps)
    assert (a.shape, g.shape, b.shape) == ((4, taps + 3), (taps + 3, taps), (taps + 3, taps + 3))
    rng = np.random.default_rng(taps)
    for _ in range(20):
        frames, taps_of = rng.standard_normal(taps + 3), rng.standard_normal(taps)
        expected = np.correlate(frames, taps_of, "valid")
        np.testing.assert_allclose(a @ ((g @ taps_of) * (b @ frames)), expected, atol=1e-13)
    # The point that the bias goes with adds to every output alike.
    np.testing.assert_array_equal(a[:, winograd.BIAS_POINT], 1)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.sampled_from([3, 4, 6, 7, 8, 11, 12, 17]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels_last=st.booleans(),
)
def test_three_taps_give_the_convolution(batch, frames, height, width, channels_last):
    layer = unit()
    order = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = torch.randn(batch, 48, frames, height, width).contiguous(memory_format=order)
    filters = winograd.time_filters(layer.conv)
    with torch.inference_mode():
        result = winograd.convolve(x, layer.conv, filters, [(1, 1)] * 3)
    torch.testing.assert_close(  # measured 1.0e-5 at most, the plain sum's 7.4e-6
        result.double(), exact(layer, x), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("shape", [(2, 3, 9, 33, 50), (1, 3, 16, 64, 64), (2, 2, 23, 57, 49)])
def test_the_first_layer_gives_the_convolution(shape, always):
    """Odd and even sizes, whose SAME padding differs, in 3 and in 2 channels."""
    layer = unit((shape[1], 16), kernel=7, stride=2)
    x = torch.rand(shape) * 2 - 1
    with torch.inference_mode():
        result = layer(x)
    assert always == [shape]
    torch.testing.assert_close(  # measured 7.1e-6 at most, the plain sum's 3.3e-6
        result.double(), exact(layer, x), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("chunk_bytes", [1, 100_000, 1_000_000])
def test_chunks_do_not_change_the_result(chunk_bytes, monkeypatch):
    layer = unit()
    filters = winograd.time_filters(layer.conv)
    x = torch.randn(3, 48, 14, 9, 10)
    with torch.inference_mode():
        whole = winograd.convolve(x, layer.conv, filters, [(1, 1)] * 3)
        monkeypatch.setattr(winograd, "CHUNK_BYTES", chunk_bytes)
        cut = winograd.convolve(x, layer.conv, filters, [(1, 1)] * 3)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)


def test_error_of_a_layer_of_the_networks_size(always):
    """RMS; the output's is 0.9. The plain sum's is 7e-8 to 3.1e-7 by the processor's kernels."""
    layer = unit((128, 192))
    x = torch.randn(1, 128, 8, 14, 14).relu()
    with torch.inference_mode():
        error = (layer(x) - exact(layer, x)).square().mean().sqrt().item()
    assert len(always) == 1
    assert 1e-8 < error < 2e-6  # measured 5.9e-7 with AVX-512 and AVX2, 8.4e-7 with SSE4.1


def test_filters_follow_the_weights(always):
    layer = unit()
    x = torch.randn(1, 48, 8, 6, 6)

    def check():
        with torch.inference_mode():
            torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=0, atol=1e-4)

    check()
    layer.conv.weight.mul_(2)  # in place
    check()
    layer.load_state_dict({key: -value for key, value in layer.state_dict().items()})
    check()
    layer.half().float()  # other memory, rounded values
    check()
    layer.conv.weight = torch.nn.Parameter(layer.conv.weight.flip(2), requires_grad=False)
    check()
    with torch.inference_mode():  # weights made there count no changes
        layer.conv.weight = torch.nn.Parameter(layer.conv.weight * 3, requires_grad=False)
    check()
    assert len(always) == 6


def test_filters_do_not_travel(always):
    layer = unit((96, 64))
    size = len(pickle.dumps(layer))
    with torch.inference_mode():
        layer(torch.randn(1, 96, 8, 4, 4))
    assert len(always) == 1
    assert layer._time_filters is not None
    assert len(pickle.dumps(layer)) == size
    assert copy.deepcopy(layer)._time_filters is None
    assert all("filters" not in name for name in layer.state_dict())


def test_only_plain_inference_of_the_folded_network_takes_it(always, monkeypatch):
    network = I3D("rgb", 5, width=0.125).eval()
    clip = torch.rand(1, 3, 12, 33, 33) * 2 - 1
    with torch.inference_mode():
        network(clip)
    assert not always
    network.fold()
    network(clip.clone().requires_grad_())
    with torch.inference_mode():
        network.double()(clip.double())
        network.float()
        with torch.autocast("cpu", torch.bfloat16):
            network(clip)
    assert not always
    with torch.inference_mode():
        network(clip)
    assert always[0] == (1, 3, 12, 33, 33)
    assert len(always) > 3


def test_big_layers_alone_are_worth_it():
    """At the paper's size: the first layer, the big 3x3x3 ones, not the narrow nor the last."""
    with torch.device("meta"):
        network = I3D("rgb", 400)
        taken = {
            name: winograd.pays(network.get_submodule(name).conv, torch.empty(1, *shape))
            for name, shape in {
                "Conv3d_1a_7x7": (3, 64, 224, 224),
                "Conv3d_2b_1x1": (64, 32, 56, 56),
                "Conv3d_2c_3x3": (64, 32, 56, 56),
                "Mixed_3b.Branch_1.Conv3d_0b_3x3": (96, 32, 28, 28),
                "Mixed_3b.Branch_2.Conv3d_0b_3x3": (16, 32, 28, 28),
                "Mixed_4f.Branch_1.Conv3d_0b_3x3": (160, 16, 14, 14),
                "Mixed_4b.Branch_1.Conv3d_0b_3x3": (96, 2, 28, 40),  # half a tile
                "Mixed_5c.Branch_1.Conv3d_0b_3x3": (192, 8, 7, 7),
            }.items()
        }
    assert list(taken.values()) == [True, False, True, True, False, True, False, False]
