"""Placement arguments where everything ends on the CPU: accepted, refused, reported. With GPUs: tests/runtime/test_placement.py."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhysparse import LLM, Device, Model, Session, SessionParams, devices, logs_to_logging, logs_to_stderr
from pyhysparse.errors import ArgumentError, HysparseError, OutOfMemoryError

HAS_GPU = len(devices()) > 1
needs_none = pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
EVERYTHING = [0, 1, 7, 8, 99, -1, "all", "auto"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the runtime logs."""
    logs_to_logging()
    caplog.set_level(logging.DEBUG, logger="pyhysparse")
    yield caplog
    logs_to_stderr()


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def test_the_cpu_is_the_last_device() -> None:
    found = devices()
    assert all(isinstance(device, Device) for device in found) and len({device.name for device in found}) == len(found)
    assert [device.name for device in found].index("CPU") == len(found) - 1
    assert all(device.description and 0 < device.memory_free <= device.memory_total for device in found)


@pytest.mark.parametrize("n_gpu_layers", EVERYTHING)
def test_everything_on_the_cpu_by_name(n_gpu_layers: Any, tiny_path: Path) -> None:
    for names in ("none", ["none"], []):
        with Model(tiny_path, n_gpu_layers=n_gpu_layers, devices=names) as model:
            check_on_cpu(model)


@needs_none
@pytest.mark.parametrize("n_gpu_layers", EVERYTHING)
def test_everything_on_the_cpu_without_a_gpu(n_gpu_layers: Any, tiny_path: Path) -> None:
    with Model(tiny_path, n_gpu_layers=n_gpu_layers, n_cpu_moe=2, tensor_split=[3, 1]) as model:
        check_on_cpu(model)


def check_on_cpu(model: Model) -> None:
    assert model.n_gpu_layers == model.info.n_gpu_layers == 0
    assert model.placement.startswith("CPU: layers 0-6, output, input") and model.placement == model.info.placement
    assert {(layer.device, layer.cpu_moe) for layer in model.layers} == {("CPU", False)}


def test_logits_do_not_depend_on_arguments_without_effect(tiny_path: Path) -> None:
    tokens = list(range(3, 60))
    options: list[dict[str, Any]] = [{"n_gpu_layers": 0}, {"devices": "none"}, {"devices": "none", "cpu_moe": True, "n_gpu_layers": "all"}]
    rows = []
    for option in options:
        with LLM(tiny_path, n_ctx=128, n_threads=1, **option) as llm:
            rows.append(llm.logits(tokens))
    assert all(np.array_equal(row, rows[0]) for row in rows)


@needs_none
@pytest.mark.parametrize("n_gpu_layers", [1, 99, "all", -1])
def test_layers_for_a_gpu_that_is_not_there_are_one_warning(n_gpu_layers: Any, tiny_path: Path, log: pytest.LogCaptureFixture) -> None:
    with LLM(tiny_path, n_ctx=64, n_gpu_layers=n_gpu_layers):
        pass
    found = warnings_of(log)
    assert len(found) == 1 and "n_gpu_layers" in found[0] and "no GPU" in found[0] and "CPU" in found[0]


@pytest.mark.parametrize("options", [{}, {"n_gpu_layers": 0}, {"n_gpu_layers": "all", "devices": "none"}], ids=str)
def test_no_warning_otherwise(options: dict[str, Any], tiny_path: Path, log: pytest.LogCaptureFixture) -> None:
    with LLM(tiny_path, n_ctx=64, **options):
        pass
    assert warnings_of(log) == []


@pytest.mark.parametrize(
    "options, words",
    [
        ({"n_gpu_layers": -2}, r"n_gpu_layers is -2; expected 'auto', 'all'"),
        ({"n_gpu_layers": "most"}, r"n_gpu_layers is 'most'"),
        ({"n_gpu_layers": 2.5}, r"n_gpu_layers is 2\.5"),
        ({"n_gpu_layers": True}, r"n_gpu_layers is True"),
        ({"n_gpu_layers": 2**40}, r"n_gpu_layers is 1099511627776"),
        ({"n_gpu_layers": None}, r"n_gpu_layers is None"),
        ({"n_cpu_moe": -1}, r"n_cpu_moe is -1"),
        ({"n_cpu_moe": True}, r"n_cpu_moe is True"),
        ({"devices": "CUDA99"}, r"devices: found 'CUDA99'"),
        ({"devices": ["CPU"]}, r"devices: found 'CPU'"),
        ({"devices": "none,none"}, r"devices: found 'none'"),
        ({"devices": ""}, r"devices is ''"),
        ({"devices": ["CUDA0,CUDA1"]}, r"devices is \['CUDA0,CUDA1'\]"),
        ({"devices": ["CUDA0", ""]}, r"devices is \['CUDA0', ''\]"),
        ({"devices": [0]}, r"devices is \[0\]"),
        ({"devices": "CUDA\0"}, r"devices is"),
        ({"devices": 0}, r"devices is 0"),
        ({"tensor_split": []}, r"tensor_split is \[\]"),
        ({"tensor_split": [0, 0.0]}, r"tensor_split is \[0, 0\.0\]"),
        ({"tensor_split": [1, -1]}, r"tensor_split is \[1, -1\]"),
        ({"tensor_split": [float("nan")]}, r"tensor_split is \[nan\]"),
        ({"tensor_split": [float("inf")]}, r"tensor_split is \[inf\]"),
        ({"tensor_split": "31"}, r"tensor_split is '31'"),
        ({"tensor_split": ["x"]}, r"tensor_split is \['x'\]"),
        ({"tensor_split": 3}, r"tensor_split is 3"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], words: str, tiny_path: Path) -> None:
    for load in (Model, LLM):
        with pytest.raises(ArgumentError, match=words):
            load(tiny_path, **options)


@pytest.mark.parametrize("options", [{"n_ctx": -4}, {"type_k": "q9"}, {"n_seq": 0}], ids=str)
def test_a_wrong_session_is_refused_before_the_weights_are_read(options: dict[str, Any], tiny_path: Path) -> None:
    """`fit` is checked like the session that it stands for."""
    fractions: list[float] = []
    with pytest.raises(ArgumentError, match=next(iter(options))):
        LLM(tiny_path, progress=fractions.append, **options)
    assert not fractions


@pytest.mark.parametrize("n_seq", [1, 3])
def test_memory_by_device_adds_up(n_seq: int, tiny_path: Path) -> None:
    with Model(tiny_path) as model, Session(model, SessionParams(512, n_seq, n_ubatch=32)) as session:
        session.eval(list(range(3, 100)))
        rows, memory = session.device_memory(), session.memory
        assert [row.device for row in rows][-1] == "CPU" and len({row.device for row in rows}) == len(rows)
        for kind in ("weights", "pages", "rings", "compute"):
            assert sum(getattr(row, kind) for row in rows) == getattr(memory, kind) > 0
        if not model.n_gpu_layers:
            assert len(rows) == 1


def test_out_of_memory_is_a_memory_error() -> None:
    assert issubclass(OutOfMemoryError, MemoryError) and issubclass(OutOfMemoryError, HysparseError)
