"""Mutated files of every format that comes from outside: ``make fuzz``, or of one format alone:

python tests/campaigns/fuzz --minutes 10 --seed 3 --target tensorflow
python tests/campaigns/fuzz --replay fuzz-output/findings/tensorflow/3-1234
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # tests, as pytest has it

from campaigns.fuzz.campaign import main  # noqa: E402 (found by that path)

if __name__ == "__main__":
    sys.exit(main())
