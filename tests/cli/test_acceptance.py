"""The memory promise on the paper's two layer patterns (shrunk widths, random weights): what `inspect` prints is what is allocated.

bench/kv_acceptance.py does the same with a prefill of 8192 tokens, and times it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhysparse import Model, Session, SessionParams

BENCH = Path(__file__).resolve().parents[2] / "bench"
N_CTX = 32768
# preset: bytes a token at f16 of HySparse and of full attention everywhere; layers; full layers
PATTERNS = {
    "7b-shrunk": (40960, 147456, 36, [*range(0, 36, 4), 35]),
    "80b-shrunk": (10240, 100352, 49, list(range(0, 49, 12))),
}


def make_model(path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(BENCH))
    from make_random_gguf import PRESETS, write_random_gguf

    return Path(write_random_gguf(path, PRESETS[preset]))


def inspect(run: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    result = run("inspect", "--json", *arguments)
    assert result.code == 0, result.err
    report: dict[str, Any] = json.loads(result.out)
    return report


@pytest.mark.parametrize("preset", PATTERNS)
def test_cache_bytes(preset: str, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    per_token, full_per_token, n_layer, full_layers = PATTERNS[preset]
    path = make_model(tmp_path / "model.gguf", preset, monkeypatch)
    report = inspect(run, path, "-c", N_CTX)
    planned = report["memory"]
    assert [il for il, layer in enumerate(report["layers"]) if layer["kind"] == "full"] == full_layers
    assert len(report["layers"]) == n_layer
    assert (planned["page_bytes_per_token"], planned["full_attention_bytes_per_token"]) == (per_token, full_per_token)
    assert planned["pages"] == N_CTX * per_token
    sparse = [layer for layer in report["layers"] if layer["kind"] == "sparse"]
    one_ring = sum(2 * 2 * layer["n_head_kv"] * layer["head_dim_k"] for layer in sparse)  # K and V, f16, a position
    assert planned["rings"] == planned["ring_bytes_per_seq"] and planned["rings"] % one_ring == 0
    assert planned["rings"] < 1024 * one_ring, "rings hold the window and a ubatch, whatever the context"

    with Model(path) as model, Session(model, SessionParams(n_ctx=N_CTX)) as session:
        tokens = np.random.default_rng(2).integers(0, model.info.n_vocab, 1500, dtype=np.int32)
        for part in (slice(0, 1496), *(slice(i, i + 1) for i in range(1496, 1500))):  # over 1024 selected tokens, then one by one
            assert np.isfinite(session.eval(tokens[part])).all()
        use = session.memory
    assert {name: getattr(use, name) for name in planned if name not in ("compute", "checkpoints")} == {
        name: value for name, value in planned.items() if name not in ("compute", "checkpoints")
    }


@pytest.mark.parametrize("type_kv", ["q8_0", "f32"])
def test_cache_bytes_of_other_types(type_kv: str, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path / "model.gguf", "7b-shrunk", monkeypatch)
    planned = inspect(run, path, "-c", N_CTX, "-ctk", type_kv, "-ctv", type_kv, "-np", 2)["memory"]
    f16 = PATTERNS["7b-shrunk"][0]
    assert planned["page_bytes_per_token"] == (f16 * 2 if type_kv == "f32" else f16 * 34 // 64)  # q8_0: 34 bytes for 32 values
    assert planned["rings"] == 2 * planned["ring_bytes_per_seq"]
    with Model(path, repack=False) as model, Session(model, SessionParams(n_ctx=N_CTX, n_seq=2, type_k=type_kv, type_v=type_kv)) as session:
        use = session.memory
    assert (use.pages, use.rings, use.page_bytes_per_token) == (planned["pages"], planned["rings"], planned["page_bytes_per_token"])
