"""The command: ``i3d``, and ``python -m i3d``.

Nothing is imported here before Ctrl-C and SIGTERM are looked after: Python would print a traceback
of whatever import it is in. Nor does it end before they are ignored.
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
    try:
        cli.main()
    finally:  # all is done but for Python's own end, of whose interruption it prints a traceback
        for number in signals:
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    """Nothing has begun that would have to be undone."""
    os.write(2, b"i3d: interrupted\n")
    os._exit(128 + number)  # as shells report signals


if __name__ == "__main__":
    main()
