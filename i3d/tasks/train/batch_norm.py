"""BatchNorm in training: over all processes' clips, and statistics that keep up with a short run.

``torch.nn.SyncBatchNorm`` serves neither a CPU nor this network: without a scale it gives the
offset no gradient (torch 2.13, ``_functions.py``: ``if weight is None ...: grad_bias = None``).
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from i3d.models.i3d import BATCH_NORM_DECAY, BatchNorm, Unit3D

AXES = (0, 2, 3, 4)  # all but the channels of (B, C, T, H, W)

# (before this step, weight of a new batch in the moving statistics). The original's 1e-3 needs
# thousands of steps to forget the mean 0 and variance 1 it started from; its runs had 115,000. So
# the statistics begin with the first batch, and their window grows with the run until it is the
# original's. In few stages, since each is a recompilation for torch.compile. (With 0.1 from the
# second step, 25 steps of SGD on a toy set gave a validation loss of 16 where training had 0.006;
# with 0.3, 0.004.)
GROWING_WINDOW = ((1, 1.0), (100, 0.3), (400, 0.1), (1_600, 0.025), (6_400, 0.00625))
ORIGINAL_MOMENTUM = 1 - BATCH_NORM_DECAY


def statistics_momentum(step: int, fixed: float | None = None) -> float:
    """Weight of a batch in the moving statistics at a step (from 0).

    Args:
        step: optimizer steps done before.
        fixed: the user's own; None lets the window grow, see `GROWING_WINDOW`.
    """
    if fixed is not None:
        return fixed
    return next((m for before, m in GROWING_WINDOW if step < before), ORIGINAL_MOMENTUM)


def set_statistics_momentum(network: nn.Module, momentum: float) -> None:
    """Use that weight in every BatchNorm."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.momentum = momentum


class _AllProcesses(torch.autograd.Function):
    """Normalise by the mean and variance over the clips of all processes, and add the offset."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        # at least float32, also under autocast; every process has equally many values
        dtype = torch.promote_types(x.dtype, torch.float32)
        variance, mean = torch.var_mean(x.to(dtype), AXES, correction=0)
        own = torch.stack([mean, variance])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, own, group=group)
        # (processes, 2, C); the same sum in the same order on each of them
        means, variances = torch.stack(every).double().unbind(1)
        mean = means.mean(0)
        # variance of the union = mean of the variances + variance of the means
        variance = variances.mean(0) + means.var(0, correction=0)
        mean, variance = mean.to(dtype), variance.to(dtype)
        y = F.batch_norm(x, mean, variance, None, bias, training=False, eps=eps)
        ctx.save_for_backward(x, mean, variance)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance = ctx.saved_tensors
        shape = (1, -1, 1, 1, 1)
        dy = gradients[0].to(mean.dtype)
        inverse = (variance + ctx.eps).rsqrt()
        normalised = (x.to(mean.dtype) - mean.view(shape)).mul_(inverse.view(shape))
        bias_gradient = dy.sum(AXES)
        sums = torch.stack([bias_gradient, (dy * normalised).sum(AXES)])
        dist.all_reduce(sums, group=ctx.group)
        count = x.numel() // x.shape[1] * dist.get_world_size(ctx.group)
        towards_mean, towards_variance = (sums / count).unbind(0)
        # dx = (dy - mean(dy) - normalised * mean(dy * normalised)) / deviation
        dx = dy - towards_mean.view(shape)
        dx.sub_(normalised.mul_(towards_variance.view(shape))).mul_(inverse.view(shape))
        return dx.to(x.dtype), bias_gradient, None, None


class SynchronisedBatchNorm(BatchNorm):
    """BatchNorm over the clips of all processes, which must have equally many.

    With gradients averaged over the processes, training is that of one process that has all the
    clips, to rounding.
    """

    group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), normalised; the moving statistics take part as in BatchNorm."""
        if not self.training:
            return super().forward(x)
        y, mean, variance = _AllProcesses.apply(x, self.bias, self.eps, self.group)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        count = x.numel() // x.shape[1] * dist.get_world_size(self.group)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            # unbiased, as torch's BatchNorm keeps it
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        return y


def synchronise(network: nn.Module, group: Any, *, compiled: bool = False) -> None:
    """Let every BatchNorm normalise over all processes, in place; parameters stay the same ones.

    Args:
        network: unfolded.
        group: the processes, connected on the network's device.
        compiled: whether ``torch.compile`` will see it; what lies between two BatchNorms is then
            compiled, their collectives are not.
    """
    for module in network.modules():
        if isinstance(module, Unit3D) and isinstance(module.bn, BatchNorm):
            old = module.bn
            new = SynchronisedBatchNorm(old.num_features, eps=old.eps)
            new.bias = old.bias
            new.running_mean, new.running_var = old.running_mean, old.running_var
            new.num_batches_tracked = old.num_batches_tracked
            new.momentum, new.group = old.momentum, group
            module.bn = new.train(old.training)
            if compiled:
                # The method of this one object is replaced, which mypy does not allow.
                new.forward = torch.compiler.disable(new.forward)  # type: ignore[method-assign]
