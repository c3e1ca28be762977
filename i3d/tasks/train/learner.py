"""One process's part of a step: gradients of its clips, joined with the others', and the update."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from i3d.clips import scale_pixels
from i3d.data.reading.random_clips import keep_masks
from i3d.models.format import Weights
from i3d.models.memory import reuse_freed_memory
from i3d.parallel.world import PATIENCE
from i3d.tasks.network import AUTOCAST, full_float32
from i3d.tasks.train.batch_norm import (
    set_statistics_momentum,
    statistics_momentum,
    synchronise,
)
from i3d.tasks.train.interrupts import Stop
from i3d.tasks.train.plan import Plan
from i3d.tasks.train.start import Start
from i3d.tasks.train.state import refuse_odd_state
from i3d.tasks.train.trainee import (
    Average,
    Trainee,
    channels_last,
    copy_weights,
    features_shape,
    freeze,
    load_optimizer,
    make_optimizer,
    set_learning_rate,
    training_mode,
)


@dataclass(frozen=True)
class Gradients:
    """What a step's clips gave, before the weights change.

    Attributes:
        losses: float64 (accumulate,) on the CPU, of this process's micro-batches.
        videos: int64 (batch_size,) of each micro-batch.
        norm: length of all gradients together, before clipping.
        loss: sum over the clips of all processes.
        right: how many of those clips were.
        finite: whether every process's are.
        stop: whether any process was asked to stop.
    """

    losses: Tensor
    videos: list[np.ndarray]
    norm: Tensor
    loss: float
    right: int
    finite: bool
    stop: bool


class Learner:
    """The network of one process, and all that changes with it.

    Args:
        plan: the run's.
        start: the network to begin or go on with.
        state: what to go on from; None: begin.

    Attributes:
        network: unfolded, on the device.
        new_head: whether its classifier started from nothing.
        optimizer: SGD or AdamW over what is not frozen.
        scaler: fp16's; it does nothing otherwise.
        average: moving average of the weights; None without one.
    """

    def __init__(self, plan: Plan, start: Start, state: Mapping[str, Any] | None) -> None:
        self.plan, self.new_head = plan, start.new_head
        options, device = plan.options, plan.device
        reuse_freed_memory()
        self.network = channels_last(start.network.to(device))
        # Gradients travel between the devices, the little else through the CPU.
        self._cpu_group = self._gradient_group = None
        if plan.world.size > 1:
            self._cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._gradient_group = self._cpu_group
            if device != "cpu":
                self._gradient_group = dist.new_group(backend="nccl", timeout=PATIENCE)
            if options.sync_batch_norm:
                synchronise(self.network, self._gradient_group, compiled=options.compile)
        training_mode(self.network, freeze(self.network, options.freeze))
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(
            self.network,
            momentum=plan.recipe.momentum,
            weight_decay=plan.recipe.weight_decay,
            head_factor=plan.recipe.new_head_factor if start.new_head else 1.0,
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=options.precision == "fp16")
        if state is not None:
            with refuse_odd_state(plan.run.output):
                self.network.load_state_dict(state["network"])
        self.average = None if options.ema is None else Average(self.network, options.ema)
        if state is not None:
            with refuse_odd_state(plan.run.output):
                self._restore(state)
        self._parallel: nn.parallel.DistributedDataParallel | None = None
        model: nn.Module = Trainee(self.network)
        if plan.world.size > 1:
            model = self._parallel = nn.parallel.DistributedDataParallel(
                model, process_group=self._gradient_group
            )
        self._model: Callable[..., Tensor] = torch.compile(model) if options.compile else model

    def _restore(self, state: Mapping[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])
        torch.set_rng_state(state["random"]["torch"])
        if self.plan.device != "cpu" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.plan.device)

    def random_state(self) -> dict[str, Any]:
        """PyTorch's random numbers, as `state` brings them back."""
        random: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.plan.device != "cpu":
            random["cuda"] = torch.cuda.get_rng_state(self.plan.device)
        return random

    def copy_weights(self) -> Weights:
        """The network to validate and to keep, on the CPU: the average where there is one."""
        return copy_weights(self.network, self.average)

    def copy_shared_weights(self) -> Weights:
        """Process 0's in all of them: each has statistics of its own where they are not joined."""
        weights = self.copy_weights()
        if self.plan.world.size > 1:
            for tensor in weights.tensors.values():
                dist.broadcast(tensor, src=0, group=self._cpu_group)
        return weights

    # --- a step -----------------------------------------------------------------------------------

    def compute_gradients(
        self, batches: Iterator[Tensor], *, step: int, learning_rate: float, stop: Stop
    ) -> Gradients:
        """Take the clips of a step.

        Args:
            batches: uint8 pixels of the next micro-batches.
            step: steps done before.
            learning_rate: what the update will use.
            stop: says at the end whether this process was asked to stop.
        """
        order, options = self.plan.order, self.plan.options
        set_learning_rate(self.optimizer, learning_rate)
        set_statistics_momentum(self.network, statistics_momentum(step, options.bn_momentum))
        self.optimizer.zero_grad(set_to_none=True)
        losses, right, videos = [], [], []
        for micro in range(order.accumulate):
            epoch, batch = order.batch(step * order.accumulate + micro)
            travel = self._gradients_travel(micro == order.accumulate - 1)
            with full_float32(benchmark=True), travel:
                loss, correct = self._forward_and_backward(next(batches), epoch, batch)
            losses.append(loss)
            right.append(correct)
            videos.append(batch)
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        values = torch.stack(losses).double().cpu()
        # With fp16 an overflow of the gradient is the scaler's to handle.
        gradient_counts = options.precision != "fp16"
        bad = not math.isfinite(values.sum()) or (gradient_counts and not math.isfinite(norm))
        loss_sum, right_sum, bad_sum, stop_sum = self._add_up(
            float(values.sum()) * order.batch_size,
            float(torch.stack(right).sum()),
            float(bad),
            float(stop.requested),
        )
        return Gradients(
            values, videos, norm, loss_sum, int(right_sum), not bad_sum, bool(stop_sum)
        )

    def update(self, norm: Tensor, *, step: int) -> None:
        """Change the weights by the gradients; ``step`` steps were done before."""
        if self.plan.options.clip_gradients is not None:
            clip_grads_with_norm_(self._parameters, self.plan.options.clip_gradients, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network, step)

    def _forward_and_backward(
        self, pixels: Tensor, epoch: int, videos: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch, and how many of it were right; its gradients are added."""
        data, options, device = self.plan.data, self.plan.options, torch.device(self.plan.device)
        clips = scale_pixels(pixels.to(device, non_blocking=True), data.stream, data.preset)
        targets = torch.from_numpy(data.labels[videos]).to(device)
        kept = None
        if options.dropout:
            kept = keep_masks(
                features_shape(self.network, options.frames),
                drop=options.dropout,
                seed=options.seed,
                epoch=epoch,
                places=data.places[videos],
            ).to(device)
        with self._arithmetic():
            logits = self._model(clips, kept).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=options.label_smoothing)
        self.scaler.scale(loss / self.plan.order.accumulate).backward()
        return loss.detach(), (logits.argmax(1) == targets).sum()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        precision = self.plan.options.precision
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.plan.device.partition(":")[0], dtype=AUTOCAST[precision])

    def _gradients_travel(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of micro-batches but the last stay in their process."""
        if last or self._parallel is None:
            return nullcontext()
        return self._parallel.no_sync()

    def _add_up(self, *values: float) -> list[float]:
        """Over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.plan.world.size > 1:
            dist.all_reduce(tensor, group=self._cpu_group)
        return tensor.tolist()
