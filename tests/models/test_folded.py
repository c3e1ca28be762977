"""The inference form gives the network's numbers, whichever path a call takes."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import small_model
from support.golden import golden
from support.units import exact, unit

from i3d.errors import I3DError
from i3d.models.folded import NeighbourMax
from i3d.models.i3d import I3D, MaxPool


@pytest.mark.parametrize(
    ("checkpoint", "input_name"),
    [("rgb400", "rgb16a"), ("rgb400", "rgb23odd"), ("flow400", "flow21odd")],
)
def test_folded_and_unfolded_networks_give_the_same_logits(model_of, checkpoint, input_name):
    g = golden(checkpoint, input_name)
    with torch.inference_mode():
        folded = model_of(checkpoint)(g.clip)
        unfolded = model_of(checkpoint, trainable=True)(g.clip)
    np.testing.assert_allclose(unfolded, g.outputs["logits"], atol=5e-4)  # measured 2.4e-4
    np.testing.assert_allclose(folded, unfolded, atol=6e-4)  # measured 3.4e-4


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 9)] * 3), channels_last=st.booleans())
def test_inference_pools_to_the_same_bits(sizes, channels_last):
    """Without a gradient the pooling inside the blocks goes along one axis after the other."""
    order = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = torch.randn(2, 5, *sizes).contiguous(memory_format=order)
    pool = MaxPool((3, 3, 3), (1, 1, 1)).fold()
    assert isinstance(pool, NeighbourMax)
    with torch.inference_mode():
        fast = pool(x)
    assert torch.equal(fast, F.max_pool3d(x, 3, 1, 1))


def test_inference_gives_what_the_plain_operators_give():
    model = small_model().fold()
    clip = torch.rand(2, 3, 18, 61, 50) * 2 - 1
    with torch.inference_mode():
        fused = model.endpoints(clip)
    for name, plain in model.endpoints(clip).items():  # with gradients switched on
        # Measured 2.4e-6 of the largest value, in the first layers (winograd.py).
        torch.testing.assert_close(fused[name], plain, rtol=0, atol=8e-6 * plain.abs().max())
        assert fused[name].is_contiguous()


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


def test_folded_network_refuses_to_train():
    model = I3D(num_classes=2, width=0.125).fold()
    assert not model.training
    with pytest.raises(I3DError, match="trainable=True"):
        model.train()
