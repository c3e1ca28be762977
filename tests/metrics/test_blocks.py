"""Sums in blocks: the same bits whoever adds them up, and NumPy's numbers."""

import numpy as np
import pytest

from i3d.errors import I3DError
from i3d.metrics.blocks import BLOCK, BlockMoments
from i3d.metrics.frechet import FEW

ROWS = np.random.default_rng(3).normal(100, 2, (1000, 24))
BLOCKS = range(-(-len(ROWS) // BLOCK))


def add_up(blocks, rows=ROWS, **options):
    moments = BlockMoments(rows.shape[1], **options)
    for block in blocks:
        moments.add(int(block), rows[block * BLOCK : (block + 1) * BLOCK])
    return moments


def same(one, other):
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.covariance(), other.covariance())
    assert one.count == other.count


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 40])
def test_any_number_of_processes_gives_the_same_bits(processes):
    rng = np.random.default_rng(processes)
    parts = [add_up(rng.permutation(part)) for part in np.array_split(BLOCKS, processes)]
    parts = [BlockMoments.from_arrays(p.to_arrays(), 24) for p in parts]
    rng.shuffle(parts)
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    same(whole.total(), add_up(BLOCKS).total())
    np.testing.assert_allclose(whole.total().covariance(), np.cov(ROWS.T), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("batch", [1, 7, 16, 333, 1000])
def test_any_batches_give_the_same_bits(batch):
    moments = BlockMoments(24)
    for start in range(0, len(ROWS), batch):
        moments.append(ROWS[start : start + batch])
        moments = BlockMoments.from_arrays(moments.to_arrays(), 24)  # as a checkpoint has it
        assert moments.count == min(start + batch, len(ROWS))
    same(moments.total(), add_up(BLOCKS).total())


def test_few_rows_are_kept_in_their_order():
    some = ROWS[: FEW - 5]
    blocks = range(-(-len(some) // BLOCK))
    np.testing.assert_array_equal(add_up(reversed(blocks), some).total().rows, some)
    assert add_up(BLOCKS).total().rows is None
    np.testing.assert_array_equal(add_up(BLOCKS, keep=True).total().rows, ROWS)


def test_what_is_held_does_not_grow():
    sizes = []
    for count in (300, 3000, 30_000):
        moments = BlockMoments(24)
        rng = np.random.default_rng(0)
        for _ in range(count // 100):
            moments.append(rng.normal(size=(100, 24)))
        sizes.append(sum(array.nbytes for array in moments.to_arrays().values()))
    # one sum a level of the tree: 11 levels, and a block of rows
    assert max(sizes) <= 12 * (24 * 25 + 1) * 8 + BLOCK * 24 * 8


def test_empty_blocks_and_bad_ones():
    moments = add_up([0, 2])
    moments.add(1, np.zeros((0, 24)))
    assert moments.count == 2 * BLOCK
    with pytest.raises(I3DError, match="NaN"):
        moments.append(np.full((2, 24), np.nan))
    assert moments.count == 2 * BLOCK
