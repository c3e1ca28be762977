"""What a run of the demo found, and the steps that led there."""

from dataclasses import dataclass

from i3d.demo.folder import Folder
from i3d.demo.sequence import Segment
from i3d.tasks.evaluate.result import Evaluation
from i3d.tasks.predict.result import Prediction


@dataclass(frozen=True)
class Step:
    """A stage of the demo.

    Attributes:
        title: one line that says what it does.
        command: words as they are typed; None where there is no command for it.
        seconds: duration.
    """

    title: str
    command: str | None
    seconds: float


@dataclass(frozen=True)
class Demo:
    """What a run found.

    Attributes:
        folder: place of everything that was made.
        seed: number that the videos depend on.
        per_class: videos of each action.
        evaluation: scores of the two networks on the videos.
        prediction: classes of one of the videos.
        timeline: classes of the longer video, window by window.
        truth: actions of the longer video, one after the other.
        steps: stages that led here, with their times.
    """

    folder: Folder
    seed: int
    per_class: int
    evaluation: Evaluation
    prediction: Prediction
    timeline: Prediction
    truth: tuple[Segment, ...]
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """Duration of all steps."""
        return sum(step.seconds for step in self.steps)
