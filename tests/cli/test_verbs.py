"""Each verb of the command on a tiny model: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhysparse import LLM, GGUFFile, Model, Session, SessionParams

PROMPT = "Once upon a time"
TEXT = "The full layer attends to everything and tells which blocks of the context mattered. " * 40
SMALL = ("-c", 256, "-t", 1)


@pytest.fixture
def greedy(tiny_path: Path) -> str:
    with LLM(tiny_path, n_ctx=256, n_threads=1) as llm:
        return llm.generate(PROMPT, max_tokens=8, temperature=0, ignore_eos=True).read()


def test_help_lists_every_verb(run: Callable[..., Any]) -> None:
    result = run("--help")
    assert result.code == 0
    for verb in ("run", "chat", "convert", "quantize", "inspect", "perplexity", "tokenize", "bench"):
        assert verb in result.out
        assert run(verb, "--help").code == 0
    assert "0.1.0" in run("--version").out


def test_run_writes_the_text_alone(run: Callable[..., Any], tiny_path: Path, greedy: str, tmp_path: Path) -> None:
    arguments = ("run", "-m", tiny_path, *SMALL, "-n", 8, "--temp", 0, "--ignore-eos")
    result = run(*arguments, "-p", PROMPT)
    assert (result.code, result.out) == (0, greedy)
    assert re.search(r"\[ Prompt: [\d.]+ t/s \| Generation: [\d.]+ t/s \]", result.err)
    (tmp_path / "prompt.txt").write_text(PROMPT)
    assert run(*arguments, "-f", tmp_path / "prompt.txt", "--no-show-timings").out == greedy
    assert run(*arguments, "-p", PROMPT, "--echo").out == PROMPT + greedy


def test_run_reads_stdin(spawn: Callable[..., Any], tiny_path: Path, greedy: str) -> None:
    result = spawn("run", "-m", tiny_path, *SMALL, "-n", 8, "--temp", 0, "--ignore-eos", stdin=PROMPT)
    assert (result.code, result.out) == (0, greedy)


def test_run_as_chat_and_stop(run: Callable[..., Any], tiny_path: Path, greedy: str) -> None:
    with LLM(tiny_path, n_ctx=256, n_threads=1) as llm:
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": PROMPT}]
        expected = llm.chat_stream(messages, max_tokens=8, temperature=0, ignore_eos=True).read()
    arguments = ("run", "-m", tiny_path, *SMALL, "-n", 8, "--temp", 0, "--ignore-eos", "-p", PROMPT)
    assert run(*arguments, "--chat", "-sys", "S").out == expected
    stop = greedy[4:6]
    assert run(*arguments, "-r", stop).out == greedy[: greedy.index(stop)]
    assert run(*arguments, "-sys", "S").code == 2


def test_run_with_oracle_and_reference_ops(run: Callable[..., Any], checkpoints: Callable[[str], Path]) -> None:
    from gguf_fixtures import tiny_gguf

    arguments = (
        "run",
        "-m",
        tiny_gguf(checkpoints, "qwen3"),
        *SMALL,
        "-n",
        8,
        "--temp",
        0,
        "--ignore-eos",
        "-p",
        PROMPT,
        "-ctk",
        "f32",
        "-ctv",
        "f32",
    )
    plain = run(*arguments)
    assert plain.code == 0 and plain.out
    assert run(*arguments, "--ref").out == plain.out
    assert run(*arguments, "--oracle-layers", "0,2", "--oracle-top-k-tokens", 256).out == plain.out  # every block selected
    refused = run(*arguments, "--oracle")
    assert refused.code == 1 and "oracle" in refused.err


def test_chat_over_pipes(spawn: Callable[..., Any], tiny_path: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        "Hello \\",
        "there",
        "/regen",
        f"/save {saved}",
        "/clear",
        f"/load {saved}",
        "/help",
        "/nonsense",
        "/read",
        "/regen",
        "/exit",
        "not read",
    ]
    result = spawn("chat", "-m", tiny_path, *SMALL, "-n", 6, "--temp", 0, "--ignore-eos", stdin="\n".join(lines) + "\n")
    assert result.code == 0, result.err
    with LLM(tiny_path, n_ctx=256, n_threads=1) as llm:
        expected = llm.chat_stream([{"role": "user", "content": "Hello \nthere"}], max_tokens=6, temperature=0, ignore_eos=True).read()
    assert result.out == (expected + "\n") * 3  # no prompts, no escape codes
    assert result.err.count("Generation:") == 3 and "unknown command /nonsense" in result.err and "/read needs a file name" in result.err
    messages = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] and messages[1]["content"] == expected.strip()


def test_chat_keeps_going_after_an_error(spawn: Callable[..., Any], tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    lines = ["x " * 400, f"/load {tmp_path / 'bad.json'}", f"/load {tmp_path / 'none.json'}", f"/save {tmp_path / 'no' / 'dir.json'}", "Hi"]
    result = spawn("chat", "-m", tiny_path, "-c", 128, "-t", 1, "-n", 4, "--temp", 0, "--ignore-eos", stdin="\n".join(lines))
    assert result.code == 0
    assert "128" in result.err and "no saved conversation" in result.err and "none.json" in result.err and "dir.json" in result.err
    assert result.err.count("Generation:") == 1


def test_chat_single_turn(run: Callable[..., Any], tiny_path: Path) -> None:
    result = run("chat", "-m", tiny_path, *SMALL, "-n", 4, "-p", "Hi", "-st", "-s", 1, "--no-show-timings", "--ignore-eos", "-ngl", 0)
    assert result.code == 0 and result.out.endswith("\n") and result.err == ""


def test_inspect(run: Callable[..., Any], tiny_path: Path) -> None:
    result = run("inspect", tiny_path, "-c", 512, "--tensors", "--metadata")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines() if re.match(r"\s*\d+ +(full|sparse|sliding)", line)]
    assert [row[1] for row in rows] == ["full", "sparse", "sparse", "full", "sliding", "sparse", "full"]
    assert [row[2] for row in rows] == ["0", "0", "0", "3", "-", "3", "6"]
    assert "blk.6.ffn_down.weight" in result.out and "hysparse.attention.kv_source" in result.out


def test_inspect_json_equals_what_a_session_allocates(run: Callable[..., Any], tiny_path: Path) -> None:
    result = run("inspect", "-m", tiny_path, "-c", 512, "-np", 2, "-ctk", "q8_0", "--json")
    report = json.loads(result.out)
    with Model(tiny_path) as model, Session(model, SessionParams(512, 2, type_k="q8_0")) as session:
        use = session.memory
    assert (report["memory"]["pages"], report["memory"]["rings"]) == (use.pages, use.rings)
    assert report["model"]["arch"] == "hysparse" and len(report["layers"]) == 7 and report["context"] == 512
    with GGUFFile(tiny_path) as file:
        assert len(report["tensors"]) == len(file.tensors) and set(report["metadata"]) == set(file.metadata)


def test_perplexity_is_that_of_the_logits(run: Callable[..., Any], tiny_path: Path, tmp_path: Path) -> None:
    """Against the definition, from LLM.logits: chunks of 64 tokens, the second half of each scored."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    result = run("perplexity", "-m", tiny_path, "-f", file, "-c", 64, "-ub", 24, "--chunks", 3, "-ctk", "f32", "-ctv", "f32", "-t", 1)
    assert result.code == 0, result.err
    total: list[float] = []
    with LLM(tiny_path, type_k="f32", type_v="f32", n_threads=1) as llm:
        ids = llm.tokenize(TEXT)
        for chunk in range(3):
            part = ids[chunk * 64 : (chunk + 1) * 64]
            first = [llm.tokenizer.bos_id] if llm.tokenizer.add_bos else part[:1]
            rows = llm.logits(np.array([*first, *part[1:]])).astype(np.float64)
            logp = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
            total += [-logp[i, part[i + 1]] for i in range(32, 63)]
    found = re.fullmatch(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)\n", result.out)
    assert found is not None
    assert float(found[1]) == pytest.approx(math.exp(float(np.mean(total))), rel=1e-4)
    assert re.match(r"\[1\][\d.]+,\[2\][\d.]+,\[3\][\d.]+,", result.err)
    short = run("perplexity", "-m", tiny_path, "-p", "too short", "-c", 64)
    assert short.code == 1 and "128" in short.err


def test_tokenize(run: Callable[..., Any], spawn: Callable[..., Any], tiny_path: Path) -> None:
    with LLM(tiny_path, n_ctx=16) as llm:
        ids, plain = llm.tokenize("The é<|im_end|>"), llm.tokenize("The é<|im_end|>", special=False, add_bos=False)
    assert run("tokenize", "-m", tiny_path, "-p", "The é<|im_end|>", "--ids").out == f"{ids}\n"
    assert run("tokenize", "-m", tiny_path, "-p", "The é<|im_end|>", "--ids", "--no-parse-special", "--no-bos").out == f"{plain}\n"
    listing = spawn("tokenize", "-m", tiny_path, "--show-count", stdin="The é<|im_end|>").out.splitlines()
    assert len(listing) == len(ids) + 1 and listing[-1] == f"Total number of tokens: {len(ids)}" and "<|im_end|>" in listing[-2]


def test_bench_forms(run: Callable[..., Any], tiny_path: Path) -> None:
    arguments = ("bench", "-m", tiny_path, "-p", "16,32", "-n", "4", "-d", "0,48", "-pg", "8,2", "-r", 2, "-t", 1, "-ngl", 0)
    tests = ["pp16", "pp32", "tg4", "pp8+tg2", "pp16 @ d48", "pp32 @ d48", "tg4 @ d48", "pp8+tg2 @ d48"]
    table = run(*arguments).out.splitlines()
    assert [line.split("|")[6].strip() for line in table[2:]] == tests and re.search(r"[\d.]+ ± [\d.]+ \|$", table[2])
    rows = json.loads(run(*arguments, "-o", "json").out)
    assert [row["test"] for row in rows] == tests and all(row["avg_ts"] > 0 and len(row["samples_ts"]) == 2 for row in rows)
    assert [row["test"] for row in csv.DictReader(io.StringIO(run(*arguments, "-o", "csv").out))] == tests
    ranges = json.loads(run("bench", "-m", tiny_path, "-p", "8-16+4", "-n", 0, "-r", 1, "-t", 1, "-o", "json", "--no-warmup").out)
    assert [row["n_prompt"] for row in ranges] == [8, 12, 16]
    for bad in ("x", "8-16*1", "5-"):
        assert run("bench", "-m", tiny_path, "-p", bad).code == 2
    assert run("bench", "-m", tiny_path, "-p", 0, "-n", 0).code == 2


def test_convert_and_quantize(run: Callable[..., Any], checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    source, f16, q8 = checkpoints("qwen3"), tmp_path / "f16.gguf", tmp_path / "q8.gguf"
    dry = run("convert", source, "-o", f16, "--outtype", "f16", "--dry-run")
    assert dry.code == 0 and "blk.0.attn_q.weight" in dry.out and not f16.exists()
    done = run("convert", source, "-o", f16, "--outtype", "f16")
    assert done.code == 0 and done.out == "" and f16.exists() and "wrote" in done.err
    assert run("quantize", f16, q8, "Q8_0", "--dry-run").code == 0 and not q8.exists()
    done = run("quantize", f16, q8, "q8_0", 1)
    assert done.code == 0, done.err
    assert q8.stat().st_size < f16.stat().st_size
    assert run("run", "-m", q8, *SMALL, "-p", PROMPT, "-n", 2).code == 0
    same = run("quantize", f16, f16, "Q8_0")
    assert same.code == 1 and "f16.gguf" in same.err
    wrong = run("quantize", f16, q8, "Q9_9")
    assert wrong.code == 1 and "Q9_9" in wrong.err
