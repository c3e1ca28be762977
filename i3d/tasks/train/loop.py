"""The loop of training: steps, validations and saves of a process, in step with the others."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from i3d import files
from i3d.clips import Views
from i3d.console import Bar
from i3d.data.reading.random_clips import Order, TrainingSet, keep_masks, load_batches, to_clips
from i3d.errors import I3DError
from i3d.models.checkpoints import build
from i3d.models.format import Weights, write_safetensors
from i3d.models.memory import reuse_freed_memory
from i3d.parallel.world import PATIENCE, Group, World
from i3d.records import plain
from i3d.tasks.evaluate import logits as evaluation
from i3d.tasks.network import AUTOCAST
from i3d.tasks.train.batch_norm import (
    set_statistics_momentum,
    statistics_momentum,
    synchronise,
)
from i3d.tasks.train.recipe import Options, Recipe, Schedule, make_optimizer, set_learning_rate
from i3d.tasks.train.start import (
    Average,
    Start,
    Stop,
    Trainee,
    channels_last,
    exported,
    features_shape,
    freeze,
    training_mode,
)
from i3d.tasks.train.state import (
    BEST,
    LAST,
    History,
    LogRow,
    Logs,
    ValidationRow,
    write_state,
)


@dataclass(frozen=True)
class Plan:
    """A run before it begins.

    Attributes:
        data: the videos.
        val: shards to validate on.
        output: folder of the run.
        options: as the user gave them.
        recipe: with the user's numbers in it.
        order: which clips a step has.
        schedule: of the learning rate.
        device: ``cpu`` or ``cuda:N``.
        workers: processes that read, of this one.
        world: this process among the others.
        settings: what may not change when the run goes on, as JSON values.
        division: what may, but changes the last digits.
    """

    data: TrainingSet
    val: files.Location | None
    output: str
    options: Options
    recipe: Recipe
    order: Order
    schedule: Schedule
    device: str
    workers: int
    world: World
    settings: Mapping[str, Any]
    division: Mapping[str, Any]


@dataclass
class _Totals:
    """Sums since the last row of the log, over all processes."""

    loss: float = 0.0  # times clips
    right: int = 0
    clips: int = 0


class Run:
    """One process's training.

    Args:
        plan: of the run.
        start: the network to begin or go on with.
        state: to go on from; None: begin.
        group: the processes, connected.
        say: shows a line to the user.

    Attributes:
        step: steps done since the run began.
        history: the curves; on process 0.
        seconds: of the steps in this process.
        clips: of them, all processes together.
    """

    def __init__(
        self,
        plan: Plan,
        start: Start,
        state: Mapping[str, Any] | None,
        group: Group,
        say: Callable[[str], None],
    ) -> None:
        self.plan, self.group, self.say = plan, group, say
        options, world, device = plan.options, plan.world, plan.device
        self.step, self.clips, self.seconds = 0, 0, 0.0
        self.history, self._totals = History(), _Totals()
        self._new_head = start.new_head
        reuse_freed_memory()
        self.network = channels_last(start.network.to(device))
        if device != "cpu":
            torch.cuda.set_device(device)
        # Gradients travel between the devices, the little else through the CPU.
        self._cpu_group = self._gradient_group = None
        if world.size > 1:
            self._cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._gradient_group = self._cpu_group
            if device != "cpu":
                self._gradient_group = dist.new_group(backend="nccl", timeout=PATIENCE)
            if options.sync_batch_norm:
                synchronise(self.network, self._gradient_group, compiled=options.compile)
        training_mode(self.network, freeze(self.network, options.freeze))
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(
            self.network,
            momentum=plan.recipe.momentum,
            weight_decay=plan.recipe.weight_decay,
            head_factor=plan.recipe.new_head_factor if start.new_head else 1.0,
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=options.precision == "fp16")
        if state is not None:
            self.network.load_state_dict(state["network"])
        self.average = None if options.ema is None else Average(self.network, options.ema)
        if state is not None:
            self._restore(state)
        self._parallel: nn.parallel.DistributedDataParallel | None = None
        model: nn.Module = Trainee(self.network)
        if world.size > 1:
            model = self._parallel = nn.parallel.DistributedDataParallel(
                model, process_group=self._gradient_group
            )
        self.model: Callable[..., Tensor] = torch.compile(model) if options.compile else model
        self.logs: Logs | None = None
        if world.first:
            self.logs = Logs(
                plan.output, self.history, tensorboard=self._tensorboard(), step=self.step
            )

    def _tensorboard(self) -> bool:
        if files.local_path(self.plan.output) is None:
            self.say("no TensorBoard events: they go to a local --output alone")
            return False
        try:
            import torch.utils.tensorboard  # noqa: F401 (is it there?)
        except ImportError:
            self.say("no TensorBoard events: pip install 'i3d[train]' for them")
            return False
        return True

    # --- the loop ---------------------------------------------------------------------------------

    def train(self, stop: Stop, bar: Bar) -> None:
        """Do the steps that are left.

        Raises:
            KeyboardInterrupt: asked to stop; the state is saved.
            I3DError: the loss is not finite, a video is damaged, another process died.
        """
        order, total = self.plan.order, self.plan.schedule.total_steps
        self._show(bar)
        if self._at_validation() and self.history.validated(self.step) is None:
            self._validate(stop, bar)  # the run ended between the save and the validation's end
        batches = load_batches(
            self.plan.data,
            order,
            first=self.step * order.accumulate,
            stop=total * order.accumulate,
            frames=self.plan.options.frames,
            workers=min(self.plan.workers, (total - self.step) * order.accumulate),
            flip=self.plan.options.flip,
            pin=self.plan.device != "cpu",
        )
        try:
            while self.step < total:
                with _others_may_die(self.plan.world):
                    stopping = self._one_step(batches, stop)
                self._show(bar)
                at_end = self.step % order.steps_per_epoch == 0 or self.step == total
                if at_end or stopping or self.step % self.plan.options.save_steps == 0:
                    self.save()
                if stopping:
                    self.say(f"stopped after step {self.step}, which is saved; --resume goes on")
                    raise KeyboardInterrupt
                if self._at_validation():
                    self._validate(stop, bar)
        finally:
            batches.close()
            if self.logs is not None:
                self.logs.close()

    def _at_validation(self) -> bool:
        """Whether the step done is one to validate after."""
        plan = self.plan
        if plan.val is None or not self.step:
            return False
        epochs, rest = divmod(self.step, plan.order.steps_per_epoch)
        due = rest == 0 and epochs % plan.options.val_every == 0
        return due or self.step == plan.schedule.total_steps

    def _show(self, bar: Bar) -> None:
        order, schedule = self.plan.order, self.plan.schedule
        epochs = -(-schedule.total_steps // order.steps_per_epoch)
        note = f"epoch {min(order.epoch_of(self.step) + 1, epochs)}/{epochs}"
        totals = self._totals
        if totals.clips:
            note += f", loss {totals.loss / totals.clips:.3f}"
            note += f", top-1 {totals.right / totals.clips:.1%}"
        elif self.history.log:
            row = self.history.log[-1]
            note += f", loss {row.loss:.3f}, top-1 {row.top1:.1%}"
        if (best := self.history.best) is not None:
            note += f", best validation {best.top1:.1%}"
        bar.update(self.step * order.clips_per_step, note=note)

    # --- one step ---------------------------------------------------------------------------------

    def _one_step(self, batches: Iterator[Tensor], stop: Stop) -> bool:
        """Take the next clips and change the weights; whether any process was asked to stop."""
        began = time.monotonic()
        plan, step = self.plan, self.step
        order, options = plan.order, plan.options
        rate = plan.recipe.learning_rate * plan.schedule.factor(step)
        set_learning_rate(self.optimizer, rate)
        set_statistics_momentum(self.network, statistics_momentum(step, options.bn_momentum))
        self.optimizer.zero_grad(set_to_none=True)
        losses, right, videos = [], [], []
        for micro in range(order.accumulate):
            epoch, batch = order.batch(step * order.accumulate + micro)
            with self._kernels(), self._gradients_travel(micro == order.accumulate - 1):
                loss, correct = self._forward_and_backward(next(batches), epoch, batch)
            losses.append(loss)
            right.append(correct)
            videos.append(batch)
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        values = torch.stack(losses).double().cpu()
        # With fp16 an overflow of the gradient is the scaler's to handle.
        gradient_counts = options.precision != "fp16"
        bad = not math.isfinite(values.sum()) or (gradient_counts and not math.isfinite(norm))
        loss_sum, right_sum, bad_sum, stop_sum = self._sum(
            float(values.sum()) * order.batch_size,
            float(torch.stack(right).sum()),
            float(bad),
            float(stop.requested),
        )
        if bad_sum:
            self._refuse(values, videos, rate)
        if options.clip_gradients is not None:
            clip_grads_with_norm_(self.parameters, options.clip_gradients, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network, step)
        self.step += 1
        self.clips += order.clips_per_step
        self.seconds += time.monotonic() - began
        totals = self._totals
        totals.loss += loss_sum
        totals.right += int(right_sum)
        totals.clips += order.clips_per_step
        end_of_epoch = self.step % order.steps_per_epoch == 0
        if self.step % options.log_steps == 0 or end_of_epoch or self.step == self._total_steps:
            self._log(rate, float(norm))
        return bool(stop_sum)

    @property
    def _total_steps(self) -> int:
        return self.plan.schedule.total_steps

    def _forward_and_backward(
        self, pixels: Tensor, epoch: int, videos: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch, and how many of it were right; its gradients are added."""
        data, options, device = self.plan.data, self.plan.options, torch.device(self.plan.device)
        clips = to_clips(pixels.to(device, non_blocking=True), data.stream)
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
            logits = self.model(clips, kept).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=options.label_smoothing)
        self.scaler.scale(loss / self.plan.order.accumulate).backward()
        return loss.detach(), (logits.argmax(1) == targets).sum()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        precision = self.plan.options.precision
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.plan.device.partition(":")[0], dtype=AUTOCAST[precision])

    def _kernels(self) -> AbstractContextManager[Any]:
        """cuDNN's fastest ones for these sizes; fp32 is full float32, as in evaluation."""
        return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)

    def _gradients_travel(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of micro-batches but the last stay in their process."""
        if last or self._parallel is None:
            return nullcontext()
        return self._parallel.no_sync()

    def _sum(self, *values: float) -> list[float]:
        """Over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.plan.world.size > 1:
            dist.all_reduce(tensor, group=self._cpu_group)
        return tensor.tolist()

    def _refuse(self, losses: Tensor, videos: list[np.ndarray], rate: float) -> None:
        """End the run over a loss that is no number; process 0 names the clips of all."""
        bad = [i for i, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
        what = "loss" if bad else "gradient"
        keys = [self.plan.data.keys[v] for i in bad or range(len(videos)) for v in videos[i]]
        mine = {"what": what, "value": losses.tolist()[bad[0]] if bad else 0, "keys": keys}
        gathered = self.group.gather(json.dumps(mine).encode())
        if not gathered:
            raise I3DError("a loss or gradient is not finite; process 0 says where")
        found = [json.loads(data) for data in gathered]
        of_loss = [f for f in found if f["what"] == "loss"]
        named = of_loss or found
        clips = ", ".join(key for f in named for key in f["keys"])
        what = f"loss is {of_loss[0]['value']}" if of_loss else "gradient is not finite"
        kept = "no state was saved yet"
        if self._saved_step is not None:
            kept = f"the state after step {self._saved_step} stays"
        raise I3DError(
            f"the {what} at step {self.step + 1}, learning rate {rate:g}, on the clips of {clips}; "
            f"{kept}. Lower --learning-rate, bound --clip-gradients, or look at these videos"
        )

    _saved_step: int | None = None

    def _log(self, rate: float, norm: float) -> None:
        totals, order = self._totals, self.plan.order
        row = LogRow(
            step=self.step,
            epoch=order.epoch_of(self.step - 1) + 1,
            loss=totals.loss / totals.clips,
            top1=totals.right / totals.clips,
            learning_rate=rate,
            gradient_norm=norm,
        )
        self._totals = _Totals()
        if self.logs is not None:
            self.logs.add(row, clips_per_second=self.clips / self.seconds)

    # --- validation and saving --------------------------------------------------------------------

    def _validate(self, stop: Stop, bar: Bar) -> None:
        """Evaluate the network that is kept; keep it as the best if it is, and save."""
        plan = self.plan
        assert plan.val is not None
        weights = self._shared(exported(self.network, self.average))
        options = evaluation.Options(
            views=Views(frames=plan.options.val_frames or plan.options.frames),
            precision=plan.options.precision,
            batch_size=plan.order.batch_size if plan.device != "cpu" else None,
            workers=plan.options.workers,
            device=plan.device,
        )
        bar.update(self.step * plan.order.clips_per_step, note="validating")
        stop.at_once = True  # the state is saved, and a validation is repeated
        try:
            evaluated = evaluation.evaluate(
                plan.val,
                {plan.data.stream: build(weights).fold()},
                options=options,
                world=plan.world,
            )
        finally:
            stop.at_once = False
        if evaluated is None or self.logs is None:
            return
        outcome = evaluated.evaluation
        scores = outcome.scores[plan.data.stream]
        loss = cross_entropy(
            outcome.predictions.logits[plan.data.stream], outcome.predictions.targets
        )
        row = ValidationRow(
            step=self.step,
            epoch=plan.order.epoch_of(self.step - 1) + 1,
            videos=scores.videos,
            skipped=len(outcome.predictions.about.skipped),
            loss=loss,
            top1=scores.top1.value,
            top5=scores.top5.value,
            mean_class=scores.mean_class,
        )
        best = self.history.best
        self.logs.add_validation(row)
        if best is None or row.top1 > best.top1:
            self._write_network(weights, BEST)
        self.save(weights)
        self._show(bar)

    def _shared(self, weights: Weights) -> Weights:
        """Process 0's on all of them: each has statistics of its own where they are not joined."""
        if self.plan.world.size > 1:
            for tensor in weights.tensors.values():
                dist.broadcast(tensor, src=0, group=self._cpu_group)
        return weights

    def save(self, weights: Weights | None = None) -> None:
        """Write the network and, after it, the state, on process 0."""
        if self.logs is None:
            return
        weights = exported(self.network, self.average) if weights is None else weights
        self._write_network(weights, LAST)
        self.logs.rewrite()
        write_state(self.plan.output, self._state())
        self._saved_step = self.step

    def _write_network(self, weights: Weights, name: str) -> None:
        with files.atomic_file(files.join(self.plan.output, name)) as path:
            write_safetensors(weights, path)

    def _state(self) -> dict[str, Any]:
        order, totals = self.plan.order, self._totals
        random: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.plan.device != "cpu":
            random["cuda"] = torch.cuda.get_rng_state(self.plan.device)
        return {
            "settings": dict(self.plan.settings),
            "division": dict(self.plan.division),
            "config": plain(self.network.config),
            "new_head": self._new_head,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.tensors,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.plan.schedule.as_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random,
            "position": {
                "step": self.step,
                "epoch": order.epoch_of(self.step),
                "step_in_epoch": self.step % order.steps_per_epoch,
            },
            "totals": {"loss": totals.loss, "right": totals.right, "clips": totals.clips},
            "history": self.history.state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.step = self._saved_step = int(state["position"]["step"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])
        self.history = History.from_state(state["history"])
        self._totals = _Totals(**state["totals"])
        torch.set_rng_state(state["random"]["torch"])
        if self.plan.device != "cpu" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.plan.device)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over videos, in float64: logits (N, K), targets int (N,)."""
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    own = logits[np.arange(len(targets)), targets]
    return float((np.log(np.exp(logits).sum(1)) - own).mean())


@contextmanager
def _others_may_die(world: World) -> Iterator[None]:
    """Turns what a connection raises whose other end is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().partition("\n")[0]
        connection = isinstance(error, dist.DistError) or "gloo" in text.lower()
        if world.size == 1 or not connection:
            raise
        raise I3DError(
            f"process {world.rank} of {world.size} lost another one, which ended before its work "
            f"was done; its own message says why ({text})"
        ) from error
