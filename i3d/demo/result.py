"""What a run of the demo found, and the steps that led there."""

from dataclasses import dataclass
from pathlib import Path

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
class Released:
    """The real network, for videos of the user's own.

    Attributes:
        name: key of `i3d.models.released.CHECKPOINTS`.
        path: its file in the cache; None where it could not be fetched.
        problem: why not, in a line; empty where it is there.
    """

    name: str
    path: Path | None
    problem: str = ""

    @property
    def fetch_command(self) -> str:
        """What fetches it."""
        return f"i3d checkpoints download {self.name}"

    @property
    def command(self) -> str:
        """What says what happens in a video."""
        return f"i3d predict VIDEO --checkpoint {self.name}"

    def __str__(self) -> str:
        if self.path is not None:
            return f"on a video of your own: {self.command}"
        return f"{self.name} was not fetched ({self.problem}); later: {self.fetch_command}"


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
        released: the real network; no figure is from it.
        steps: stages that led here, with their times.
    """

    folder: Folder
    seed: int
    per_class: int
    evaluation: Evaluation
    prediction: Prediction
    timeline: Prediction
    truth: tuple[Segment, ...]
    released: Released
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """Duration of all steps."""
        return sum(step.seconds for step in self.steps)
