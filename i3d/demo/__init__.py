"""The embedded example: the whole system on videos that it renders itself.

    seed --render--> .mp4 --precompute--> shards --evaluate--> table
                       |                                         +--> index.html
                       +--predict--> classes over time ----------+

The videos are synthetic: a drawn figure does one of twelve actions (`actions.py`, `render.py`). The
two small networks that come with the package were trained on other videos of the same kind. So the
table says that every step works here, and nothing about real videos. For those a released network
is fetched last, where this machine reaches a source of it; all else needs no connection.
"""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:  # the processes that render import this package, and need none of it
    from i3d.demo.options import PER_CLASS as PER_CLASS
    from i3d.demo.options import SEED as SEED
    from i3d.demo.pipeline import render_videos as render_videos
    from i3d.demo.pipeline import run_demo as run_demo
    from i3d.demo.result import Demo as Demo

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "options": "PER_CLASS SEED",
        "pipeline": "render_videos run_demo",
        "result": "Demo",
    },
)
