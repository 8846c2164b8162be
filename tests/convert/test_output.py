"""How files are written: types, streaming, splitting, dry runs, progress, and nothing left behind."""
from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_values import Values
from reference.tiny import make_checkpoint, make_preset
from safetensors.numpy import load_file, save_file

from pyhysparse.convert import ConvertError, convert, parse_size


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(((got - want) ** 2).sum() / (want**2).sum())


def test_sharded_equals_unsharded(tmp_path: Path) -> None:
    for shards in (1, 4):
        make_checkpoint(tmp_path / str(shards) / "model", shards=shards)
        convert(tmp_path / str(shards) / "model", tmp_path / f"{shards}.gguf", "f32")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "4.gguf").read_bytes()


def test_packed_experts_equal_single_ones(tmp_path: Path) -> None:
    """The same weights stored one by one and as gate_up_proj [E, 2F, H], down_proj [E, H, F] give the same file."""
    make_preset(tmp_path / "single/model", "moe_shared")
    shutil.copytree(tmp_path / "single", tmp_path / "packed")
    path = tmp_path / "packed/model/model.safetensors"
    tensors = load_file(str(path))
    for il in range(1, 7):
        prefix = f"model.layers.{il}.mlp.experts."
        one = [[tensors.pop(f"{prefix}{e}.{kind}_proj.weight") for kind in ("gate", "up", "down")] for e in range(8)]
        tensors[prefix + "gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, up, _ in one])
        tensors[prefix + "down_proj"] = np.stack([down for _, _, down in one])
    save_file(tensors, str(path))
    for kind in ("single", "packed"):
        convert(tmp_path / kind / "model", tmp_path / f"{kind}.gguf", "f32")
    assert (tmp_path / "single.gguf").read_bytes() == (tmp_path / "packed.gguf").read_bytes()


@pytest.mark.parametrize(("source", "outtype", "written", "file_type"), [
    ("float32", "f32", "F32", 0), ("float32", "f16", "F16", 1), ("float32", "bf16", "BF16", 32), ("float32", "q8_0", "Q8_0", 7),
    ("float32", "auto", "F16", 1), ("float16", "auto", "F16", 1), ("bfloat16", "auto", "BF16", 32)])
def test_outtypes(tmp_path: Path, source: str, outtype: str, written: str, file_type: int) -> None:
    make_preset(tmp_path, "moe_groups", torch_dtype=source, qk_norm=True, add_swa_attention_sink_bias=True)
    convert(tmp_path, tmp_path / "exact.gguf", "f32")
    report = convert(tmp_path, tmp_path / "out.gguf", outtype)
    exact, g = Values(tmp_path / "exact.gguf"), Values(tmp_path / "out.gguf")
    assert g.keys["general.file_type"] == file_type and report.outtype == {0: "f32", 1: "f16", 32: "bf16", 7: "q8_0"}[file_type]
    for name, kind in g.types.items():
        vector = g.tensors[name].ndim == 1
        assert kind == ("F32" if vector or "ffn_gate_inp" in name else written), name
        limit = {"F32": 0.0, "F16": 1e-6, "BF16": 1e-5, "Q8_0": 1e-4}[kind]
        if outtype == "auto" and source != "float32":
            limit = 0.0  # 16-bit weights are kept as they are
        assert nmse(g.tensors[name], exact.tensors[name]) <= limit, name


def test_bf16_rounds_to_nearest_even(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    make_checkpoint(tmp_path)
    convert(tmp_path, tmp_path / "f32.gguf", "f32")
    convert(tmp_path, tmp_path / "bf16.gguf", "bf16")
    exact, g = Values(tmp_path / "f32.gguf"), Values(tmp_path / "bf16.gguf")
    want = torch.from_numpy(exact.tensors["token_embd.weight"]).to(torch.bfloat16).float().numpy()
    assert np.array_equal(g.tensors["token_embd.weight"], want)


def test_rows_that_q8_0_cannot_hold(tmp_path: Path) -> None:
    """Rows of 40 elements are no multiple of 32: f16, the others q8_0."""
    make_checkpoint(tmp_path, intermediate_size=40)
    convert(tmp_path, tmp_path / "out.gguf", "q8_0")
    types = Values(tmp_path / "out.gguf").types
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"


def test_f16_overflow_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    tensors = load_file(str(tmp_path / "model/model.safetensors"))
    tensors["model.layers.3.mlp.up_proj.weight"][1, 2] = -70000.0
    save_file(tensors, str(tmp_path / "model/model.safetensors"))
    with pytest.raises(ConvertError, match=r"blk\.3\.ffn_up\.weight: found the value 70000, expected at most 65504"):
        convert(tmp_path / "model", tmp_path / "out.gguf", "f16")
    assert listing(tmp_path) == ["model"]
    convert(tmp_path / "model", tmp_path / "out.gguf", "bf16")


def test_split(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "whole.gguf", "f32")
    report = convert(tmp_path / "model", tmp_path / "part.gguf", "f32", split_max_size="200K")
    n = len(report.files)
    assert n > 3 and [p.name for p in report.files] == [f"part-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]
    whole, parts = Values(tmp_path / "whole.gguf"), Values(*report.files)
    assert set(whole.tensors) == set(parts.tensors)
    for name, w in whole.tensors.items():
        assert np.array_equal(w, parts.tensors[name]), name
    for i, path in enumerate(report.files):
        keys = Values(path).keys
        assert (keys["split.no"], keys["split.count"], keys["split.tensors.count"]) == (i, n, len(whole.tensors))
    assert parts.keys["hysparse.block_count"] == 7
    assert convert(tmp_path / "model", tmp_path / "one.gguf", split_max_size="1G").files == [tmp_path / "one.gguf"]


def test_split_sizes() -> None:
    assert [parse_size(s) for s in (None, 0, 5, "7", "500M", "2g", "3 KB")] == [0, 0, 5, 7, 500_000_000, 2_000_000_000, 3000]
    for bad in ("2X", "", "-1M", "1.5G", -3):
        with pytest.raises(ConvertError, match="split_max_size"):
            parse_size(bad)


def test_dry_run_says_what_would_be_written(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    dry = convert(tmp_path / "model", tmp_path / "new/out.gguf", "q8_0", dry_run=True, split_max_size="100K")
    assert listing(tmp_path) == ["model"]
    real = convert(tmp_path / "model", tmp_path / "new/out.gguf", "q8_0", split_max_size="100K")
    assert (dry.files, dry.tensors, dry.n_bytes, dry.n_params) == (real.files, real.tensors, real.n_bytes, real.n_params)
    assert dry.dry_run and not real.dry_run and listing(tmp_path / "new") == [p.name for p in real.files]


def test_progress_adds_up(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    calls: list[tuple[int, int, str]] = []
    report = convert(tmp_path, tmp_path / "out.gguf", progress=lambda done, total, name: calls.append((done, total, name)))
    done = [d for d, _, _ in calls]
    assert done == sorted(done) and calls[-1][0] == calls[-1][1] == report.n_bytes
    assert {name for _, _, name in calls} == {t.name for t in report.tensors}


@pytest.mark.parametrize("split", [None, "100K"])
def test_interruption_leaves_nothing(tmp_path: Path, split: str | None) -> None:
    """Ctrl-C in the middle: no new file, and a file of that name from before is untouched."""
    make_checkpoint(tmp_path / "model")
    (tmp_path / "out.gguf").write_bytes(b"before")

    def interrupt(done: int, total: int, name: str) -> None:
        if done > total // 2:
            assert len(listing(tmp_path)) == 3  # the temporary folder
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "model", tmp_path / "out.gguf", split_max_size=split, progress=interrupt)
    assert listing(tmp_path) == ["model", "out.gguf"] and (tmp_path / "out.gguf").read_bytes() == b"before"


def test_failed_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of several files cannot be moved into place: the first goes too."""
    make_checkpoint(tmp_path / "model")
    real, calls = os.replace, []

    def replace(a: Path, b: Path) -> None:
        calls.append(b)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ConvertError, match=r"out\.gguf: writing failed: No space left"):
        convert(tmp_path / "model", tmp_path / "out.gguf", split_max_size="100K")
    assert listing(tmp_path) == ["model"]


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConvertError, match="free space: found 1000 bytes, expected at least"):
        convert(tmp_path / "model", tmp_path / "out.gguf")
    assert listing(tmp_path) == ["model"]


def test_unwritable_target(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvertError, match="cannot write there"):
        convert(tmp_path / "model", tmp_path / "file/out.gguf")
    with pytest.raises(ConvertError, match="found a folder, expected a file name"):
        convert(tmp_path / "model", tmp_path)


@pytest.mark.parametrize("outtype", ["f32", "bf16", "q8_0"])
def test_peak_memory_is_a_few_chunks(tmp_path: Path, outtype: str) -> None:
    """A 200 MB checkpoint whose largest tensors are 50 MB stacks of experts and a 33 MB embedding: what is alive stays far below both."""
    overrides = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sparse_attention"], "hidden_size": 512, "vocab_size": 32000,
                 "mlp_layer_types": ["dense", "sparse"], "n_routed_experts": 96, "num_experts_per_tok": 2, "moe_intermediate_size": 512,
                 "torch_dtype": "bfloat16"}
    make_checkpoint(tmp_path / "model", shards=3, packed_experts=True, **overrides)
    n_bytes = sum(p.stat().st_size for p in (tmp_path / "model").glob("*.safetensors"))
    assert n_bytes > 200e6
    tracemalloc.start()
    try:
        convert(tmp_path / "model", tmp_path / "out.gguf", outtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6, f"{peak / 1e6:.0f} MB"


def test_general_keys(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "my-model")
    (tmp_path / "my-model/README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n")
    convert(tmp_path / "my-model", tmp_path / "out.gguf")
    keys = Values(tmp_path / "out.gguf").keys
    assert [keys[f"general.{k}"] for k in ("name", "type", "license", "size_label")] == ["my-model", "model", "apache-2.0", "345K"]
    convert(tmp_path / "my-model", tmp_path / "out.gguf", name="Another name")
    assert Values(tmp_path / "out.gguf").keys["general.name"] == "Another name"


def test_no_tokenizer(tmp_path: Path) -> None:
    """Random test checkpoints need none; the report says so."""
    make_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    report = convert(tmp_path, tmp_path / "out.gguf")
    assert any("no tokenizer" in text for text in report.warnings)
    keys = Values(tmp_path / "out.gguf").keys
    assert keys["hysparse.vocab_size"] == 320 and not any(k.startswith("tokenizer.") for k in keys)
