"""Where things lie."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples" / "i3d"
REFERENCE = TESTS / "reference"  # golden files that are committed
SHARED = ROOT.parent / "shared"  # files too large or not ours to commit; absent on most machines
