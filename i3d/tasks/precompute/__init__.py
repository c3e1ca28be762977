"""A dataset of videos -> shards of RGB frames and TV-L1 flow."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.precompute.dry_run import dry_run as dry_run
    from i3d.tasks.precompute.options import Settings as Settings
    from i3d.tasks.precompute.options import Work as Work
    from i3d.tasks.precompute.writing import Precomputed as Precomputed
    from i3d.tasks.precompute.writing import precompute as precompute

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "options": "Settings Work",
        "writing": "Precomputed precompute",
        "dry_run": "dry_run",
    },
)
