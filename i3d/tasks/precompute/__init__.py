"""A dataset of videos -> shards of RGB frames and TV-L1 flow."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.precompute.dry_run import dry_run
    from i3d.tasks.precompute.writing import Settings, VideoSet, precompute

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "writing": "Settings VideoSet precompute",
        "dry_run": "dry_run",
    },
)
