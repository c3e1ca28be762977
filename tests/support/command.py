"""The command line, called as a function."""

import pytest

from i3d.cli import main


def exit_code(*arguments) -> int:
    """What ``i3d ARGUMENTS`` ends with, run in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code
