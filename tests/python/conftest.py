"""Models for the tests of the Python API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf_fixtures import demo_gguf, tiny_gguf

from pyhysparse import LLM


@pytest.fixture(scope="session")
def tiny_path(checkpoints: Callable[[str], Path]) -> Path:
    """A tiny random HySparse model: full, sparse and sliding layers, byte-level BPE of 320 tokens, ChatML template."""
    return tiny_gguf(checkpoints)


@pytest.fixture
def tiny(tiny_path: Path) -> Iterator[LLM]:
    """That model, loaded."""
    with LLM(tiny_path, n_ctx=256, n_ubatch=16, n_threads=1, type_k="f32", type_v="f32") as llm:
        yield llm


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """The GGUF of SmolLM2-135M-Instruct."""
    return demo_gguf()


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> Iterator[LLM]:
    """The demo model, loaded once."""
    with LLM(demo_path, n_ctx=1024) as llm:
        yield llm
