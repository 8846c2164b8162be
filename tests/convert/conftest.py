"""Makes `pyhysparse.convert` importable from the source tree when the package is not installed (it needs no compiled code)."""
from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # for `reference`


def _alias_source_tree() -> None:
    try:
        import pyhysparse.convert  # noqa: F401
        return
    except ImportError:
        for name in [n for n in sys.modules if n.split(".")[0] == "pyhysparse"]:
            del sys.modules[name]
    package = types.ModuleType("pyhysparse")
    package.__path__ = []
    sys.modules["pyhysparse"] = package
    folder = ROOT / "convert"
    spec = importlib.util.spec_from_file_location("pyhysparse.convert", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pyhysparse.convert"] = module
    spec.loader.exec_module(module)
    package.convert = module  # type: ignore[attr-defined]


_alias_source_tree()
