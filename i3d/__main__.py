"""The command: ``i3d``, and ``python -m i3d``.

Nothing is imported here before Ctrl-C and SIGTERM are looked after: Python would print a traceback
of whatever import it is in.
"""

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line."""
    signals = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, _end) for number in signals}
    from i3d import cli

    for number, handler in before.items():
        signal.signal(number, handler)
    cli.main()


def _end(number: int, _: FrameType | None) -> None:
    """Nothing has begun that would have to be undone."""
    os.write(2, b"i3d: interrupted\n")
    os._exit(128 + number)  # as shells report signals


if __name__ == "__main__":
    main()
