"""Makes `reference` (tests/reference) importable from every test file, whatever folder it lies in and however pytest is started."""
import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parent)
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
