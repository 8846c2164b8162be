"""One LLM in several threads: serialised, never mixed up; and stopping a generation from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhysparse import LLM, errors

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
PROMPTS = ["Once upon a time", "The full layer attends", "A window of the last tokens", "Numbers such as 0, 12"]


def test_generations_of_several_threads_are_serialised(tiny: LLM) -> None:
    expected = [tiny.generate(prompt, max_tokens=10, **GREEDY).read() for prompt in PROMPTS]

    def work(i: int) -> bool:
        return tiny.generate(PROMPTS[i % 4], max_tokens=10, **GREEDY).read() == expected[i % 4]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))


def test_logits_run_beside_a_generation(tiny: LLM) -> None:
    ids = tiny.tokenize(PROMPTS[0])
    expected, text = tiny.logits(ids), tiny.generate(PROMPTS[1], max_tokens=30, **GREEDY).read()
    with ThreadPoolExecutor(3) as pool:
        generation = pool.submit(lambda: tiny.generate(PROMPTS[1], max_tokens=30, **GREEDY).read())
        rows = [pool.submit(tiny.logits, ids) for _ in range(6)]
        assert generation.result() == text
        assert all((row.result() == expected).all() for row in rows)


def test_cancel_from_another_thread(tiny: LLM) -> None:
    started = threading.Event()
    result: list[Any] = []

    def work() -> None:
        while not result:
            generation = tiny.generate(PROMPTS[0], **GREEDY)
            for _piece in generation:
                started.set()
                time.sleep(0.002)
            if generation.finish_reason == "cancelled":
                result.append(len(generation.tokens))

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    tiny.cancel()
    thread.join(10)
    assert result and result[0] < 240
    assert tiny.generate(PROMPTS[0], max_tokens=3, **GREEDY).read()


def test_close_while_another_thread_generates(tiny_path: Path) -> None:
    llm = LLM(tiny_path, n_ctx=256, n_threads=1)
    started = threading.Event()
    ends: list[str] = []

    def work() -> None:
        try:
            while True:
                for _piece in llm.generate(PROMPTS[0], **GREEDY):
                    started.set()
        except errors.HysparseError as error:
            ends.append(type(error).__name__)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    llm.close()
    thread.join(10)
    assert not thread.is_alive() and ends == ["ClosedError"]


def test_close_while_other_threads_make_sessions(tiny_path: Path) -> None:
    """logits() makes a session of its own each time; close() must not free the model under one that is being made."""
    ends: list[str] = []

    def work(llm: LLM) -> None:
        try:
            while True:
                llm.logits([1, 2, 3])
        except errors.HysparseError as error:
            ends.append(type(error).__name__)

    for i in range(40):
        llm = LLM(tiny_path, n_ctx=64, n_threads=1)
        threads = [threading.Thread(target=work, args=(llm,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(i % 8 * 0.0005)
        llm.close()
        for thread in threads:
            thread.join(10)
    assert len(ends) == 80 and set(ends) <= {"ClosedError", "CancelledError"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_told_instead_of_waiting_for_ever(tiny_path: Path) -> None:
    """OpenMP's worker threads do not survive fork(): the thread that had them gets an error, a new thread works."""
    script = (
        "import os, signal, sys, threading\n"
        "from pyhysparse import LLM, errors\n"
        "llm = LLM(sys.argv[1], n_ctx=64, n_threads=2)\n"
        "llm.eval([1, 2, 3])\n"
        "if os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "signal.alarm(20)\n"
        "try:\n"
        "    llm.eval([4])\n"
        "except errors.StateError as error:\n"
        "    assert 'forked' in str(error), error\n"
        "    thread = threading.Thread(target=llm.eval, args=([4],))\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "assert llm.tokens == [1, 2, 3, 4], llm.tokens\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tiny_path)], check=True, timeout=60)


def test_the_gil_is_released(tiny: LLM) -> None:
    """Python runs on while C evaluates."""
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        tokens = np.random.default_rng(1).integers(3, 300, 200)
        start = time.monotonic()
        while time.monotonic() - start < 0.5:
            tiny.logits(tokens)
    finally:
        done.set()
        thread.join()
    assert ticks > 20


@pytest.mark.parametrize("n", [3])
def test_models_in_parallel(tiny_path: Path, n: int) -> None:
    llms = [LLM(tiny_path, n_ctx=128, n_threads=1) for _ in range(n)]
    with ThreadPoolExecutor(n) as pool:
        texts = list(pool.map(lambda llm: llm.generate(PROMPTS[2], max_tokens=20, **GREEDY).read(), llms))
    assert len(set(texts)) == 1
    for llm in llms:
        llm.close()
