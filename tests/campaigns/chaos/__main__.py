"""Disturb every long command at random, time and again, and see that nothing is lost: make chaos.

    python tests/campaigns/chaos --minutes 20 --seed 1 --command train --disturbance kill

A round takes one command (`inputs.COMMANDS`) and one disturbance (`disturbances.DISTURBANCES`),
runs the command in an empty folder under it, and then once more undisturbed. At the end every file
that the command answers for has the bytes of a run that was never disturbed; nothing temporary and
no process is left; exit codes and messages were those of docs/reliability.md throughout.

A round's choices depend on the seed and its number alone, so that --round N repeats one of them, as
far as the machine's timing lets it. What does not hold is kept in the folder of findings, with the
command line, outputs and logs; the exit code then is 1.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # tests, as pytest has it

from campaigns.chaos.campaign import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(__doc__))
