"""BatchNorm in training: over all processes, and the window of its statistics."""

import sys

import pytest
from support.training import finished, started

from i3d.tasks.train.batch_norm import statistics_momentum


def test_statistics_window_grows_to_the_originals():
    found = [statistics_momentum(s) for s in (0, 1, 99, 100, 400, 1600, 6400, 115_000)]
    assert found == pytest.approx([1, 0.3, 0.3, 0.1, 0.025, 0.00625, 0.001, 0.001])
    assert statistics_momentum(7, 0.3) == 0.3


SYNCHRONISED = """
import torch, torch.distributed as dist
from torch import nn
from i3d.models.i3d import I3D
from i3d.tasks.train.batch_norm import synchronise
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
def network():
    torch.manual_seed(0)
    return I3D("rgb", 3, width=0.125, dropout=0.0).double().train()
torch.manual_seed(5)
x = torch.rand(4, 3, 16, 42, 42, dtype=torch.float64) * 2 - 1
y = torch.tensor([0, 1, 2, 0])
part = slice(2 * rank, 2 * rank + 2)
whole, joined, local = network(), network(), network()
nn.functional.cross_entropy(whole(x), y).backward()
synchronise(joined, dist.group.WORLD)
for model in (joined, local):
    parallel = nn.parallel.DistributedDataParallel(model)
    nn.functional.cross_entropy(parallel(x[part]), y[part]).backward()
    pairs = [(a.grad, b.grad) for a, b in zip(whole.parameters(), model.parameters())]
    pairs += list(zip(whole.buffers(), model.buffers()))
    print(max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs))
dist.destroy_process_group()
"""


def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch():
    """In float64, gradients and statistics of all layers: torch's BatchNorm in one process."""
    for out, _ in finished(started([sys.executable, "-c", SYNCHRONISED], 2)):
        joined, local = map(float, out.split())
        assert joined < 1e-9  # measured 2e-12
        assert local > 0.1  # each process on its own
