"""SAME padding against its definition and TensorFlow's numbers."""

import pytest

from i3d.models.padding import same_padding


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (2, 2), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 198, 199])
def test_same_padding_is_the_least_that_gives_every_stride_an_output(size, kernel, stride):
    front, back = same_padding(size, kernel, stride)
    outputs = -(-size // stride)
    assert (size + front + back - kernel) // stride + 1 == outputs
    assert back - front in (0, 1)
    if front + back:  # one less would lose an output
        assert (size + front + back - 1 - kernel) // stride + 1 < outputs


def test_padding_is_asymmetric_where_tensorflows_is():
    assert [same_padding(n, 7, 2) for n in (224, 23)] == [(2, 3), (3, 3)]
    assert [same_padding(n, 3, 2) for n in (112, 99)] == [(0, 1), (1, 1)]
    assert [same_padding(n, 2, 2) for n in (14, 13)] == [(0, 0), (0, 1)]
