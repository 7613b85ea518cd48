"""Models of known truth, for tests: what `benchmarks/what_an_atlas_finds.py` reports on, imported from beside it."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "what-is-found.md"
sys.path.insert(0, str(BENCHMARKS))

from truths.apart import *  # noqa: E402, F403
from truths.learned import *  # noqa: E402, F403
from truths.meaningless import *  # noqa: E402, F403
from truths.planted import *  # noqa: E402, F403
