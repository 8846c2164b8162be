"""The command on the demo model, as a newcomer meets it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = (
    "The lighthouse keeper climbed the stairs every evening before sunset. He trimmed the wick, filled the lamp with oil, and watched the "
    "ships pass on their way to the harbour. In winter the wind shook the windows, and he wrote long letters to his sister in the city. "
)


def test_run_without_a_model_uses_the_demo(spawn: Callable[..., Any], demo_path: Path) -> None:
    result = spawn("run", "-p", "The capital of France is", "-n", 8, "--temp", 0, "-c", 256)
    assert result.code == 0 and "Paris" in result.out


def test_chat_answers_in_english(spawn: Callable[..., Any], demo_path: Path) -> None:
    result = spawn("chat", "-n", 40, "--temp", 0, "-c", 512, stdin="Write one sentence about the sea.\n/exit\n")
    assert result.code == 0 and re.search(r"\b(the|sea|ocean|is|and)\b", result.out), result.out


def test_perplexity_of_english(run: Callable[..., Any], demo_path: Path, tmp_path: Path) -> None:
    """Sane: far below the vocabulary size, and the same for any split into ubatches."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 5)
    found = [
        re.search(r"PPL = ([\d.]+)", run("perplexity", "-m", demo_path, "-f", file, "-c", 128, "--chunks", 2, "-ub", ub).out)
        for ub in (128, 50)
    ]
    values = [float(match[1]) for match in found if match is not None]
    assert len(values) == 2 and 1 < values[0] < 60 and values[0] == pytest.approx(values[1], rel=0.02)


def test_oracle_mode_of_the_demo(run: Callable[..., Any], demo_path: Path) -> None:
    """Its calibrated list is the default when the mode is on; off, every layer is full."""
    plain, oracle = (json.loads(run("inspect", "-m", demo_path, "--json", *more).out) for more in ((), ("--oracle",)))
    assert {layer["kind"] for layer in plain["layers"]} == {"full"}
    assert [i for i, layer in enumerate(oracle["layers"]) if layer["kind"] == "full"] == [0, 3, 7, 8, 14, 18, 20, 23]
