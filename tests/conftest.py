"""Makes `reference` (tests/reference) importable from every test file, whatever folder it lies in and however pytest is started."""
import sys
from pathlib import Path

import pytest

TESTS = str(Path(__file__).resolve().parent)
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """The models are tiny: threads cost more than they bring, above all beside the runtime's own."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
