"""Results as JSON, replaced whole: an interrupted write leaves the file before it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["save"]


def save(path: Path, results: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)
