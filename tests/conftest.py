"""Makes `reference` (tests/reference) importable from every test file, whatever folder it lies in and however pytest is started."""
import sys
from collections.abc import Callable
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


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> folder of a tiny random checkpoint (presets.PRESETS or stock.STOCK), made once a session."""
    from reference.presets import PRESETS
    from reference.stock import make_stock
    from reference.tiny import make_preset

    root = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(name: str) -> Path:
        folder = root / name
        if folder.exists():
            return folder
        return make_preset(folder, name) if name in PRESETS else make_stock(folder, name)

    return checkpoint
