"""The options that place a model on GPUs. What needs a GPU is skipped without one; the rest holds on every machine."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhysparse import Model, SessionParams, devices

GPUS = [device for device in devices() if device.name != "CPU"]
needs_gpu = pytest.mark.skipif(not GPUS, reason="no GPU, or a build without kernels for it")
needs_none = pytest.mark.skipif(bool(GPUS), reason="this machine has a GPU")
SMALL = ("-c", 256, "-t", 1, "-n", 4, "--temp", 0, "--ignore-eos")


@pytest.mark.parametrize("verb", [[], ["run"], ["chat"], ["perplexity"], ["bench"], ["inspect"]], ids=str)
def test_list_devices(verb: list[str], run: Callable[..., Any]) -> None:
    """llama.cpp's form, whatever else the verb would need."""
    result = run(*verb, "--list-devices")
    assert (result.code, result.err) == (0, "")
    first, *rows = result.out.splitlines()
    assert first == "Available devices:"
    if not GPUS:
        assert rows == ["  (none)"]
        return
    found = [re.fullmatch(r"  (\w+): (.+) \((\d+) MiB, (\d+) MiB free\)", row) for row in rows]
    assert [(m[1], m[2], int(m[3])) for m in found if m] == [(d.name, d.description, d.memory_total // 2**20) for d in GPUS]
    assert all(0 < int(m[4]) <= int(m[3]) for m in found if m)


@pytest.mark.parametrize("options", [["-ngl", 0], ["-ngl", "all", "-dev", "none"], ["-ngl", "auto", "-dev", "none", "-cmoe"]], ids=str)
def test_on_the_cpu_nothing_is_said(options: list[Any], run: Callable[..., Any], tiny_path: Path) -> None:
    arguments = ("run", "-m", tiny_path, *SMALL, "-p", "Once upon a time", "--no-show-timings")
    plain, placed = run(*arguments, "-ngl", 0), run(*arguments, *options)
    assert placed.code == 0 and placed.err == "" and placed.out == plain.out


def test_verbose_says_where(run: Callable[..., Any], tiny_path: Path) -> None:
    """Once, on stderr."""
    for verb in ("run", "chat"):
        end = ["-st"] if verb == "chat" else []
        result = run(verb, "-m", tiny_path, *SMALL, "-p", "Once", "-v", "-ngl", 0, *end)
        assert result.code == 0 and result.err.count("CPU: layers 0-6, output, input") == 1 and "CPU: layers" not in result.out


@needs_none
def test_bench_without_a_gpu(run: Callable[..., Any], tiny_path: Path) -> None:
    arguments = ("bench", "-m", tiny_path, "-p", 8, "-n", 0, "-r", 1, "-t", 1, "-ngl", "auto")
    table = run(*arguments).out
    assert "| CPU " in table and "ngl" not in table
    row = json.loads(run(*arguments, "-o", "json").out)[0]
    assert (row["backend"], row["n_gpu_layers"], row["devices"]) == ("CPU", 0, "") and row["placement"].startswith("CPU: layers 0-6")


@needs_none
def test_inspect_without_a_gpu(run: Callable[..., Any], tiny_path: Path) -> None:
    plain = run("inspect", tiny_path)
    assert plain.code == 0 and plain.out == run("inspect", tiny_path, "-ngl", "auto").out
    assert "device" not in plain.out and "GPU" not in plain.out


@needs_gpu
@pytest.mark.parametrize("verb", ["run", "chat"])
def test_what_lies_where_is_said_once(verb: str, spawn: Callable[..., Any], tiny_path: Path) -> None:
    """By the command, or by the runtime's log."""
    end = ["-st"] if verb == "chat" else []
    for more in ([], ["-v"]):
        result = spawn(verb, "-m", tiny_path, *SMALL, "-p", "Once", "-ngl", "all", "-dev", GPUS[0].name, *more, *end)
        assert result.code == 0 and result.err.count(f"{GPUS[0].name}: layers 0-6, output") == 1
        assert "layers 0-6" not in result.out


@needs_gpu
def test_bench_on_a_gpu(run: Callable[..., Any], tiny_path: Path) -> None:
    name = GPUS[0].name
    arguments = ("bench", "-m", tiny_path, "-p", 16, "-n", 4, "-d", 48, "-r", 1, "-t", 1, "-dev", name)
    header, _, *rows = run(*arguments, "-ngl", "all").out.splitlines()
    columns = [cell.strip() for cell in header.split("|")]
    assert [[cell.strip() for cell in row.split("|")][columns.index("ngl")] for row in rows] == ["8", "8"]
    for layers, expected in (("all", 8), ("auto", 8), (0, 0), (1, 1)):
        row = next(csv.DictReader(io.StringIO(run(*arguments, "-ngl", layers, "-o", "csv").out)))
        assert int(row["n_gpu_layers"]) == expected
        assert (row["backend"], row["devices"]) == ((name.rstrip("0123456789"), name) if expected else ("CPU", ""))


@needs_gpu
def test_perplexity_is_the_same_there(run: Callable[..., Any], tiny_path: Path) -> None:
    arguments = ("perplexity", "-m", tiny_path, "-p", "Once upon a time there was a small model. " * 60, "-c", 64, "--chunks", 4, "-t", 1)
    values = []
    for layers in (0, "all"):
        result = run(*arguments, "-ngl", layers)
        assert result.code == 0, result.err
        values.append(float(result.out.split("=")[1].split()[0]))
    assert values[1] == pytest.approx(values[0], rel=0.02)


@needs_gpu
def test_inspect_shows_the_plan_by_device(run: Callable[..., Any], tiny_path: Path) -> None:
    name = GPUS[0].name
    result = run("inspect", tiny_path, "-c", 512, "-ngl", 2, "-dev", name)
    assert result.code == 0 and "2 of 8 layers on GPUs" in result.out
    rows = [line.split() for line in result.out.splitlines() if re.match(r"\s*\d+ +(full|sparse|sliding)", line)]
    assert [row[-1] for row in rows] == ["CPU"] * 6 + [name]  # layer 6 is a full layer that nobody else reads
    report = json.loads(run("inspect", tiny_path, "-c", 512, "-ngl", "all", "-dev", name, "--json").out)
    assert report["model"]["n_gpu_layers"] == 8 and {layer["device"] for layer in report["layers"]} == {name}
    with Model(tiny_path, n_gpu_layers=0) as model:
        assert report["memory"] == {**report["memory"], "pages": model.memory_plan(SessionParams(512)).pages}
