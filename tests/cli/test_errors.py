"""Mistakes end in one line on stderr and an exit code: 1 for errors, 2 for wrong usage, 130 for Ctrl-C. Never in a traceback."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "pyhysparse.cli.main"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "-m", "MISSING.gguf", "-p", "x"], r"MISSING\.gguf"),
        (["run", "-m", "TEXT", "-p", "x"], r"GGUF"),
        (["run", "-m", "TINY", "-p", "x", "--top-p", "7"], r"top_p.*7.*0 to 1"),
        (["run", "-m", "TINY", "-p", "x", "--sampler-seq", "q"], r"samplers.*'q'"),
        (["run", "-m", "TINY", "-p", "x " * 500, "-c", "64"], r"64"),
        (["run", "-m", "TINY", "-p", "x", "-dev", "CUDA99"], r"devices.*'CUDA99'"),
        (["bench", "-m", "TINY", "-p", "8", "-n", "0", "-dev", "none,"], r"devices.*'none,'"),
        (["run", "-m", "TINY", "-p", "x", "-ts", "1,-1"], r"tensor_split.*-1"),
        (["run", "-m", "TINY", "-f", "MISSING.txt"], r"MISSING\.txt"),
        (["run", "-m", "TINY", "-f", "LATIN1"], r"UTF-8"),
        (["run", "-m", "TINY", "--chat", "--chat-template", "{{ 1 / 0 }}", "-p", "x"], r"ZeroDivisionError"),
        (["run", "-hf", "not-a-repo", "-p", "x"], r"user/repo"),
        (["convert", "EMPTY", "-o", "out.gguf"], r"config\.json"),
        (["quantize", "MISSING.gguf", "out.gguf", "Q8_0"], r"MISSING\.gguf"),
        (["inspect", "TEXT"], r"GGUF"),
        (["tokenize", "-m", "TEXT", "-p", "x"], r"GGUF"),
    ],
)
def test_one_line(arguments: list[str], words: str, run: Callable[..., Any], tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "TEXT").write_text("this is no model")
    (tmp_path / "LATIN1").write_bytes(b"caf\xe9")
    (tmp_path / "EMPTY").mkdir()
    places = {name: str(tmp_path / name) for name in ("TEXT", "LATIN1", "EMPTY", "MISSING.gguf", "MISSING.txt", "out.gguf")}
    places["TINY"] = str(tiny_path)
    result = run(*[places.get(argument, argument) for argument in arguments])
    assert result.code == 1 and result.out == ""
    assert re.fullmatch(rf"hysparse: error: .*({words}).*\n", result.err), result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run", "--nope"],
        ["run", "-n", "many", "-p", "x"],
        ["run", "-m", "a", "-hf", "b/c", "-p", "x"],
        ["run", "-p", "x", "-f", "y"],
        ["run", "-p", "x", "-m", "a", "--oracle-window", "8"],
        ["run", "-p", "x", "--oracle-layers", "a,b"],
        ["convert", "x"],
        ["run", "-p", "x", "-ngl", "-1"],
        ["run", "-p", "x", "-ngl", "most"],
        ["perplexity", "-p", "x", "-ts", "3:1"],
        ["bench", "-ncmoe", "-2"],
        ["tokenize", "-p", "x", "-ngl", "1"],
        ["perplexity", "-ctk", "q9"],
        ["perplexity", "-m", "a", "-p", "x", "--chunks", "0"],
        ["chat", "-st"],
        ["inspect"],
        ["quantize", "a"],
    ],
)
def test_wrong_usage(arguments: list[str], run: Callable[..., Any]) -> None:
    result = run(*arguments)
    assert result.code == 2 and result.out == "" and "Usage:" in result.err


def test_chat_refuses_bytes_that_are_not_text(tiny_path: Path) -> None:
    command = [*COMMAND, "chat", "-m", str(tiny_path), "-n", "2", "-ngl", "0"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, input=b"\xff\xfe hi\n", capture_output=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"hysparse: error: standard input is not UTF-8 (byte 0)\n")


def test_help_is_quick_and_needs_no_libraries(spawn: Callable[..., Any]) -> None:
    heavy = ["numpy", "tokenizers", "rich", "jinja2", "huggingface_hub", "pyhysparse._hysparse", "torch"]
    code = f"import sys; from pyhysparse.cli.main import main; main(['--help']); assert not set({heavy}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def read_until(process: subprocess.Popen[bytes], n: int, seconds: float = 60) -> bytes:
    """At least n bytes of its stdout."""
    assert process.stdout is not None
    data, end = b"", time.monotonic() + seconds
    while len(data) < n and time.monotonic() < end:
        if select.select([process.stdout], [], [], 0.2)[0]:
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                break
            data += piece
    return data


def test_interrupt_ends_run(tiny_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "-m", str(tiny_path), "-c", "65536", "-t", "1", "-p", "Once", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert read_until(process, 20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err and b"Generation:" in err


def test_interrupt_ends_the_turn_only(tiny_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", "-m", str(tiny_path), "-c", "65536", "-t", "1", "--ignore-eos"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    assert read_until(process, 20)
    process.send_signal(signal.SIGINT)
    process.stdin.write(b"/regen\n")
    process.stdin.flush()
    assert read_until(process, 40)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(b"/exit\n", timeout=60)
    assert process.returncode == 0 and b"Traceback" not in err and err.count(b"Generation:") == 2


def test_closed_pipe(tiny_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "-m", str(tiny_path), "-c", "65536", "-t", "1", "-p", "Once", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert read_until(process, 5)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(60) == 1 and b"Traceback" not in err and b"Exception" not in err
