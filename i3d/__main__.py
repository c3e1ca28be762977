"""``python -m i3d`` is ``i3d``."""

from i3d.cli import main

main()
