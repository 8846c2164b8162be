"""Models and a runner for the tests of the command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from gguf_fixtures import demo_gguf, tiny_gguf

from pyhysparse.cli.main import main


@dataclass(frozen=True)
class Result:
    """Exit code and what was written."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny_path(checkpoints: Callable[[str], Path]) -> Path:
    """A tiny random HySparse model with a tokenizer."""
    return tiny_gguf(checkpoints)


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """The GGUF of SmolLM2-135M-Instruct."""
    return demo_gguf()


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command inside this process (quick)."""

    def call(*arguments: object) -> Result:
        code = main([str(a) for a in arguments])
        captured = capfdbinary.readouterr()
        return Result(code, captured.out.decode(), captured.err.decode())

    return call


@pytest.fixture
def spawn() -> Run:
    """Run it as a process of its own, with text on its standard input."""

    def call(*arguments: object, stdin: str = "", timeout: float = 120) -> Result:
        command = [sys.executable, "-m", "pyhysparse.cli.main", *map(str, arguments)]
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=timeout, check=False)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call
