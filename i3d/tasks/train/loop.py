"""The loop of training: steps, validations and saves of a process, in step with the others."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from i3d import files
from i3d.console import Bar
from i3d.data.reading.random_clips import load_batches
from i3d.errors import I3DError
from i3d.models.checkpoints import BEST, LAST
from i3d.models.format import Weights, write_safetensors
from i3d.parallel.world import Group
from i3d.records import pick, plain
from i3d.tasks.train.interrupts import Stop, others_may_die
from i3d.tasks.train.learner import Gradients, Learner
from i3d.tasks.train.plan import Plan
from i3d.tasks.train.start import Start
from i3d.tasks.train.state import History, LogRow, Logs, Totals, write_state
from i3d.tasks.train.validation import validate


class Loop:
    """One process's training.

    Args:
        plan: the run's.
        start: the network to begin or go on with.
        state: what to go on from; None: begin.
        group: the processes, connected.
        say: shows a line to the user.

    Attributes:
        step: steps done since the run began.
        history: the curves; on process 0.
        seconds: time of the steps in this process.
        clips: how many these steps took, all processes together.
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
        self.step, self.clips, self.seconds = 0, 0, 0.0
        self.history, self._totals = History(), Totals()
        self._saved_step: int | None = None
        self.learner = Learner(plan, start, state)
        if state is not None:
            self.step = self._saved_step = state["position"]["step"]
            self.history = History.from_state(state["history"])
            self._totals = pick(Totals, state["totals"])
        self.logs: Logs | None = None
        if plan.world.first:
            if state is None:  # first of all, so that a run killed at any moment can go on
                write_state(plan.run.output, self._state())
                self._saved_step = 0
            self.logs = Logs(
                plan.run.output, self.history, tensorboard=self._tensorboard(), step=self.step
            )

    def _tensorboard(self) -> bool:
        if files.local_path(self.plan.run.output) is None:
            self.say("no TensorBoard events: they go to a local --output alone")
            return False
        try:
            import tensorboard  # noqa: F401 (is it there?)
        except ImportError:
            self.say("no TensorBoard events: pip install tensorboard for them")
            return False
        return True

    def train(self, stop: Stop, bar: Bar) -> None:
        """Do the steps that are left.

        Raises:
            KeyboardInterrupt: asked to stop; the state is saved.
            I3DError: the loss is not finite, a video is damaged, another process died.
        """
        order, options, total = self.plan.order, self.plan.options, self._total_steps
        self._show(bar)
        if self._at_validation() and self.history.validated(self.step) is None:
            self._validate(stop, bar)  # the run ended between the save and the validation's end
        batches = load_batches(
            self.plan.data,
            order,
            first=self.step * order.accumulate,
            stop=total * order.accumulate,
            frames=options.frames,
            workers=self.plan.workers,
            flip=options.flip,
            pin=self.plan.device != "cpu",
        )
        try:
            while self.step < total:
                with others_may_die(self.plan.world):
                    stopping = self._take_step(batches, stop)
                self._show(bar)
                at_end = self.step % order.steps_per_epoch == 0 or self.step == total
                if at_end or stopping or self.step % options.save_steps == 0:
                    self.save()
                if stopping:
                    self.say(f"stopped after step {self.step}, which is saved; --resume goes on")
                    raise KeyboardInterrupt
                if self._at_validation():
                    self._validate(stop, bar)
        finally:
            batches.close()

    @property
    def _total_steps(self) -> int:
        return self.plan.schedule.total_steps

    def _at_validation(self) -> bool:
        """Whether the step done is one to validate after."""
        if self.plan.val is None or not self.step:
            return False
        epochs, rest = divmod(self.step, self.plan.order.steps_per_epoch)
        due = rest == 0 and epochs % self.plan.options.val_every == 0
        return due or self.step == self._total_steps

    def _show(self, bar: Bar) -> None:
        order = self.plan.order
        epochs = -(-self._total_steps // order.steps_per_epoch)
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

    def _take_step(self, batches: Iterator[Tensor], stop: Stop) -> bool:
        """Take the next clips and change the weights; whether any process was asked to stop."""
        began = time.monotonic()
        plan, order = self.plan, self.plan.order
        rate = plan.recipe.learning_rate * plan.schedule.factor(self.step)
        found = self.learner.compute_gradients(
            batches, step=self.step, learning_rate=rate, stop=stop
        )
        if not found.finite:
            self._refuse(found, rate)
        self.learner.update(found.norm, step=self.step)
        self.step += 1
        self.clips += order.clips_per_step
        self.seconds += time.monotonic() - began
        self._totals.loss += found.loss
        self._totals.right += found.right
        self._totals.clips += order.clips_per_step
        end_of_epoch = self.step % order.steps_per_epoch == 0
        row_is_full = self.step % plan.options.log_steps == 0
        if row_is_full or end_of_epoch or self.step == self._total_steps:
            self._log(rate, float(found.norm))
        return found.stop

    def _refuse(self, found: Gradients, rate: float) -> None:
        """End the run over a loss that is no number; process 0 names the clips of all."""
        losses = found.losses.tolist()
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        what = "loss" if bad else "gradient"
        micros = bad or range(len(losses))
        keys = [self.plan.data.keys[v] for i in micros for v in found.videos[i]]
        mine = {"what": what, "value": str(losses[bad[0]]) if bad else "", "keys": keys}
        gathered = self.group.gather(json.dumps(mine, allow_nan=False).encode())
        if not gathered:
            raise I3DError("a loss or gradient is not finite; process 0 says where")
        every = [json.loads(data) for data in gathered]
        of_loss = [one for one in every if one["what"] == "loss"]
        clips = ", ".join(key for one in of_loss or every for key in one["keys"])
        what = f"loss is {of_loss[0]['value']}" if of_loss else "gradient is not finite"
        kept = "no state was saved yet"
        if self._saved_step:
            kept = f"the state after step {self._saved_step} stays"
        raise I3DError(
            f"the {what} at step {self.step + 1}, learning rate {rate:g}, on the clips of {clips}; "
            f"{kept}. Lower --learning-rate, bound --clip-gradients, or look at these videos"
        )

    def _log(self, rate: float, norm: float) -> None:
        totals = self._totals
        row = LogRow(
            step=self.step,
            epoch=self.plan.order.epoch_of(self.step - 1) + 1,
            loss=totals.loss / totals.clips,
            top1=totals.right / totals.clips,
            learning_rate=rate,
            gradient_norm=norm,
        )
        self._totals = Totals()
        if self.logs is not None:
            self.logs.add(row, clips_per_second=self.clips / self.seconds)

    # --- validation and saving --------------------------------------------------------------------

    def _validate(self, stop: Stop, bar: Bar) -> None:
        """Evaluate the network that is kept; keep it as the best if it is, and save."""
        weights = self.learner.copy_shared_weights()
        bar.update(self.step * self.plan.order.clips_per_step, note="validating")
        stop.at_once = True  # the state is saved, and a validation is repeated
        try:
            row = validate(self.plan, weights, step=self.step)
        finally:
            stop.at_once = False
        if row is None or self.logs is None:
            return
        best = self.history.best
        self.logs.add_validation(row)
        if best is None or row.top1 > best.top1:
            self._write_network(weights, BEST)
        self.save(weights)
        self._show(bar)

    def save(self, weights: Weights | None = None) -> None:
        """Write the network and, after it, the state, on process 0."""
        if self.logs is None:
            return
        self._write_network(self.learner.copy_weights() if weights is None else weights, LAST)
        self.logs.rewrite()
        write_state(self.plan.run.output, self._state())
        self._saved_step = self.step

    def _write_network(self, weights: Weights, name: str) -> None:
        write_safetensors(weights, files.join(self.plan.run.output, name))

    def _state(self) -> dict[str, Any]:
        order, totals, learner = self.plan.order, self._totals, self.learner
        return {
            "settings": self.plan.settings,
            "division": self.plan.division,
            "config": plain(learner.network.config),
            "new_head": learner.new_head,
            "network": learner.network.state_dict(),
            "average": None if learner.average is None else learner.average.tensors,
            "optimizer": learner.optimizer.state_dict(),
            "schedule": self.plan.schedule.as_dict(),
            "scaler": learner.scaler.state_dict(),
            "random": learner.random_state(),
            "position": {
                "step": self.step,
                "epoch": order.epoch_of(self.step),
                "step_in_epoch": self.step % order.steps_per_epoch,
            },
            "totals": {"loss": totals.loss, "right": totals.right, "clips": totals.clips},
            "history": self.history.state(),
        }
