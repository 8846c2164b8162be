"""The runtime on GPUs: logits against the reference model, partial offload, decode as replayed graphs, sequences, memory, several devices.

All of it is skipped without a GPU (or in a build without kernels for it). The arguments alone are tested in tests/python/test_devices.py.
"""
from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.compare import NodeRecorder, assert_close, reference_with_choices_of
from reference.model import HySparseForCausalLM, OracleLlama
from reference.runtime import to_gguf
from reference.tiny import VOCAB_SIZE, make_preset

from pyhysparse import LLM, Model, Session, SessionParams, devices, errors
from pyhysparse.quantizing import quantize

Checkpoints = Callable[[str], Path]
GPUS = [device.name for device in devices() if device.name != "CPU"]
pytestmark = pytest.mark.skipif(not GPUS, reason="no GPU, or a build without kernels for it")
ALL: dict[str, Any] = {"n_gpu_layers": "all", "devices": GPUS[:1]}
CPU: dict[str, Any] = {"n_gpu_layers": 0}

# NMSE against the float64 reference that is given the GPU's own choices of blocks and experts. ggml multiplies f32 matrices in TF32 (11
# bits: about 1e-6 over a tiny model, more over 49 layers) and f16 ones with f16 sums; the CPU is at 1e-10. A wrong kernel is above 1e-2.
LIMITS = {"f32": 1e-4, "f16": 1e-3, "q8_0": 1e-2}
TIES = {"f32": 0.1, "f16": 0.3, "q8_0": 1.0}  # scores nearer than this may be chosen in either order (test_logits.py: 0.1 for f16)
GREEDY = {"f32": 0.01, "f16": 0.05, "q8_0": 0.15}  # the two best logits nearer than this, in their standard deviations, are a tie
LIMIT_SAME = 1e-6  # the same kernels on the same numbers: at most an order of summation differs
ORACLE: dict[str, Any] = {"full_layers": [0, 2], "block_size": 16, "top_k_tokens": 48, "window": 20}


def random_tokens(n: int, seed: int) -> list[int]:
    return list(torch.randint(0, VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


TOKENS, OTHER = random_tokens(200, 5), random_tokens(120, 6)  # TOKENS: those of test_logits.py, over 12 blocks, windows and rings


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint, perhaps in oracle mode."""

    checkpoint: Path
    oracle: bool = False

    def gguf(self, outtype: str = "f32") -> Path:
        return to_gguf(self.checkpoint, outtype)

    def model(self, outtype: str = "f32", **placement: Any) -> Model:
        return Model(self.gguf(outtype), oracle=ORACLE if self.oracle else False, **placement)

    @property
    def reference(self) -> HySparseForCausalLM:
        return reference_of(self)


@lru_cache(maxsize=8)
def reference_of(case: Case) -> HySparseForCausalLM:
    if case.oracle:
        return OracleLlama.from_stock(case.checkpoint, **ORACLE, dtype=torch.float64)
    return HySparseForCausalLM.from_checkpoint(case.checkpoint, torch.float64)


@pytest.fixture
def case(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Case:
    """By name: a preset, a stock model, or "oracle NAME"."""
    oracle, _, name = str(request.param).rpartition(" ")
    return Case(checkpoints(name), oracle == "oracle")


@pytest.fixture(scope="session")
def everything_selected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """name -> the preset with more selected blocks than there are: no choice that rounding could flip, so results compare directly."""
    root = tmp_path_factory.mktemp("everything-selected")
    return lambda name: Case(root / name if (root / name).exists() else make_preset(root / name, name, sparse_topk_tokens=4096))


@pytest.fixture(params=["dense", "sinks_all", "hybrid_swa", "kv_heads_differ", "heads_192_128", "all_full"])
def plain(request: pytest.FixtureRequest, everything_selected: Callable[[str], Case]) -> Case:
    return everything_selected(request.param)


def cases(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", names, indirect=True)


@contextmanager
def session_of(model: Model, cache: str = "f32", n_seq: int = 1, n_ubatch: int = 64, n_ctx: int = 1024) -> Iterator[Session]:
    with model, Session(model, SessionParams(n_ctx, n_seq, n_ubatch=n_ubatch, n_threads=1, type_k=cache, type_v=cache)) as session:
        yield session


def run(session: Session, tokens: Sequence[int], seq: int = 0, pieces: Sequence[int] | None = None) -> torch.Tensor:
    """Logits of all tokens, evaluated in calls of these sizes (in one by default)."""
    rows, start = [], 0
    for size in pieces or [len(tokens)]:
        rows.append(torch.from_numpy(session.eval(tokens[start : start + size], seq, want="all")))
        start += size
    assert start == len(tokens)
    return torch.cat(rows)


def assert_same_tokens(ours: torch.Tensor, expected: torch.Tensor, kind: str) -> None:
    best = expected.topk(2, dim=-1).values
    clear = best[:, 0] - best[:, 1] > GREEDY[kind] * expected.std()
    assert float(clear.double().mean()) > 0.5, "too many ties: the comparison would say little"
    different = (ours.argmax(-1) != expected.argmax(-1)) & clear
    assert not bool(different.any()), f"greedy token differs at positions {different.nonzero().flatten().tolist()}"


def check(session: Session, case: Case, kind: str, pieces: Sequence[int] | None = None) -> torch.Tensor:
    """Sequence 0 becomes TOKENS; its logits must be the reference's, under the session's own choices, which are checked too."""
    recorder = NodeRecorder(("selection", "ffn_moe_topk"))
    with session.capture(recorder):
        logits = run(session, TOKENS, 0, pieces)
    expected, _, _ = reference_with_choices_of(recorder.nodes(), case.reference, TOKENS, tie=TIES[kind])
    assert_close(logits, expected, LIMITS[kind])
    assert_same_tokens(logits, expected, kind)
    return logits


SHAPES = ("dense", "pattern_7b", "gate_channel", "gate_none", "all_full", "hybrid_swa", "sinks_all", "kv_heads_differ", "gqa_1_kv",
          "mha", "heads_192_128", "block_8", "block_24", "block_10_top_1", "window_long", "qk_norm", "bias", "tied", "value_scale",
          "rope_per_type", "rope_llama3", "moe_groups", "moe_shared", "moe_softmax", "moe_512", "moe_1_11", "llama", "qwen3",
          "oracle llama")  # fmt: skip
SOME = ("dense", "sinks_all", "hybrid_swa", "moe_groups", "oracle llama")


# --- logits ---------------------------------------------------------------------------------------------------------------------------


@cases(*SHAPES)
def test_f32(case: Case) -> None:
    """F32 weights and caches; and without the capture, which computes node by node, the same again."""
    with session_of(case.model(**ALL), n_seq=2) as session:
        captured = check(session, case, "f32")
        assert_close(run(session, TOKENS, 1), captured, LIMITS["f32"], "logits without capture")


@cases(*SHAPES)
def test_f16(case: Case) -> None:
    with session_of(case.model("f16", **ALL), "f16", n_seq=2) as session:
        captured = check(session, case, "f16")
        assert_close(run(session, TOKENS, 1), captured, LIMITS["f16"], "logits without capture")


@cases("dense", "heads_192_128", "moe_groups")
def test_q8_0_weights(case: Case) -> None:
    with session_of(case.model("q8_0", **ALL), "f16") as session:
        check(session, case, "q8_0")


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
@cases(*SOME, "heads_192_128", "block_10_top_1")
def test_cache_types(case: Case, cache: str) -> None:
    """Over F32 weights; f32 caches are test_f32's."""
    with session_of(case.model(**ALL), cache) as session:
        check(session, case, cache)
    with session_of(case.model(**ALL), cache) as session:
        check(session, case, cache, [150, *[1] * 50])


def test_products_of_many_tokens(everything_selected: Callable[[str], Case]) -> None:
    """From 384 tokens on, quantised matrices are multiplied by cuBLAS in f16 (ggml_ops/cuda/matmul.cu)."""
    case, tokens = everything_selected("dense"), random_tokens(500, 7)
    with session_of(case.model("q8_0", **CPU), "f16", n_ubatch=512) as session:
        expected = run(session, tokens)
    for n_ubatch in (512, 128):
        with session_of(case.model("q8_0", **ALL), "f16", n_ubatch=n_ubatch) as session:
            logits = run(session, tokens)
        assert_close(logits, expected, LIMITS["q8_0"], f"n_ubatch {n_ubatch}")
        assert_same_tokens(logits, expected, "q8_0")


@pytest.mark.parametrize("type_name", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "Q4_0"])
def test_products_of_one_token(type_name: str, tmp_path: Path) -> None:
    """One token's quantised products, with SwiGLU and the residual sum in them (cuda/gemv.cu), against ggml's for two and the CPU's.

    All round x to 8 bits; for types with an offset ggml's sum of a block is of the values before rounding, ours of those after.
    Over seven layers of random weights that is up to 4.4e-3 (Q4_0), too much for greedy tokens to be the same.
    """
    case = Case(make_preset(tmp_path / "wide", "dense", sparse_topk_tokens=4096, hidden_size=512, intermediate_size=768))
    path = tmp_path / "quantised.gguf"
    quantize(case.gguf(), path, type_name)
    tokens = random_tokens(60, 8)
    with session_of(Model(path, **ALL), "f16") as session:
        one = run(session, tokens, 0, [1] * 60)
    with session_of(Model(path, **ALL), "f16") as session:
        two = run(session, tokens, 0, [2] * 30)
    assert_close(one, two, LIMITS["q8_0"], "one by one against two by two")
    with session_of(Model(path, **CPU), "f16") as session:
        assert_close(one, run(session, tokens), LIMITS["q8_0"], "against the CPU")


@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
@cases(*SOME)
def test_ubatches(case: Case, n_ubatch: int) -> None:
    with session_of(case.model(**ALL), n_ubatch=n_ubatch) as session:
        check(session, case, "f32")


@cases(*SOME)
def test_long_context(case: Case) -> None:
    """1500 tokens: many pages, of whose blocks few are read, then single tokens; the reference has the GPU's choices."""
    tokens, recorder = random_tokens(1500, 6), NodeRecorder(("selection", "ffn_moe_topk"))
    with session_of(case.model(**ALL), n_ubatch=256, n_ctx=1536) as session, session.capture(recorder):
        logits = run(session, tokens, 0, [1460, *[1] * 40])
    expected, _, _ = reference_with_choices_of(recorder.nodes(), case.reference, tokens, tie=TIES["f32"])
    assert_close(logits, expected, LIMITS["f32"])


# --- what lies where ------------------------------------------------------------------------------------------------------------------


def check_cut(model: Model, n: int) -> None:
    """At most n layers, the last ones, no sparse layer parted from the cache that it reads; the same in every report."""
    info, layers = model.info, model.layers
    on_gpu = [layer.device != "CPU" for layer in layers]
    assert info.n_gpu_layers <= n and (info.n_gpu_layers > 0) == (n > 0)
    assert on_gpu == [il >= info.n_layer - (info.n_gpu_layers - 1 if n else 0) for il in range(info.n_layer)]
    assert all(layers[layer.kv_source].device == layer.device for layer in layers if layer.kv_source >= 0)
    assert (GPUS[0] in model.placement) == (n > 0) and "CPU" in model.placement


@cases(*SOME)
def test_every_partial_offload(case: Case) -> None:
    found = []
    with case.model(**CPU) as model:
        n_layer = model.info.n_layer
    for n in range(n_layer + 2):
        model = case.model(n_gpu_layers=n, devices=GPUS[:1])
        with session_of(model) as session:
            check_cut(model, n)
            found.append(model.n_gpu_layers)
            check(session, case, "f32", [150, *[1] * 50])
    assert found == sorted(found) and (found[0], found[1], found[-1]) == (0, 1, n_layer + 1)


@cases("pattern_7b", "moe_1_11")
def test_half_of_a_deep_model(case: Case) -> None:
    model = case.model(n_gpu_layers=20, devices=GPUS[:1])
    with session_of(model) as session:
        check_cut(model, 20)
        check(session, case, "f32")


@pytest.mark.parametrize("options", [{"cpu_moe": True}, {"n_cpu_moe": 3}, {"n_cpu_moe": 3, "n_gpu_layers": 5}], ids=str)
@cases("moe_groups", "moe_shared", "moe_512")
def test_experts_on_the_cpu(case: Case, options: dict[str, Any]) -> None:
    with session_of(case.model(**ALL)) as session:
        everything = session.device_memory()[0].weights
    model = case.model(**{**ALL, **options})
    with session_of(model) as session:
        for il, layer in enumerate(model.layers):
            moved = layer.moe and layer.device != "CPU" and (options.get("cpu_moe", False) or il < 3)
            assert layer.cpu_moe == moved, f"layer {il}"
        moved_any = any(layer.cpu_moe for layer in model.layers)
        assert session.device_memory()[0].weights < everything and ("experts of" in model.placement) == moved_any
        check(session, case, "f32", [150, *[1] * 50])


def test_auto_takes_everything_that_fits(checkpoints: Checkpoints) -> None:
    """And counts the caches of the session that it is to leave room for."""
    case = Case(checkpoints("dense"))
    with case.model(n_gpu_layers="auto") as model:
        assert model.n_gpu_layers == 8 and all(layer.device == GPUS[0] for layer in model.layers) and "output" in model.placement
    with case.model(n_gpu_layers="auto", devices=GPUS[:1], fit=SessionParams(2**28, type_k="f32", type_v="f32")) as model:
        assert model.n_gpu_layers < 4
    with case.model(n_gpu_layers="all", devices="none") as model:
        assert model.n_gpu_layers == 0 and all(layer.device == "CPU" for layer in model.layers)


@pytest.mark.parametrize("n", [0, 1, 4, "all"])
def test_memory_by_device(n: int | str, checkpoints: Checkpoints) -> None:
    with session_of(Case(checkpoints("dense")).model(n_gpu_layers=n, devices=GPUS[:1]), "f16", n_seq=3) as session:
        run(session, TOKENS)
        rows, memory = session.device_memory(), session.memory
        plan = session.model.memory_plan(session.params)
    assert [row.device for row in rows] == [*GPUS[:1], "CPU"][0 if n else 1 :]
    for kind in ("weights", "pages", "rings", "compute"):
        assert sum(getattr(row, kind) for row in rows) == getattr(memory, kind) > 0
    assert (plan.pages, plan.rings) == (memory.pages, memory.rings)
    if n == "all":
        assert (rows[0].pages, rows[0].rings, rows[0].weights) == (memory.pages, memory.rings, memory.weights)


@pytest.mark.parametrize("options, words", [
    ({"devices": "CUDA99"}, r"devices: found 'CUDA99'"), ({"devices": [*GPUS[:1], *GPUS[:1]]}, r"devices: .* named twice"),
    ({"devices": GPUS[:1], "tensor_split": [1, 1]}, r"tensor_split: has 2 shares, expected 1")], ids=str)  # fmt: skip
def test_wrong_devices(options: dict[str, Any], words: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(errors.ArgumentError, match=words):
        Model(Case(checkpoints("dense")).gguf(), **options)


# --- decode and sequences -------------------------------------------------------------------------------------------------------------


@cases(*SHAPES)
def test_decode(case: Case) -> None:
    """100 tokens one by one, over edges of blocks and pages: node by node against the reference, and as the graphs that are replayed."""
    pieces = [100, *[1] * 100]
    with session_of(case.model(**ALL), n_seq=2) as session:
        captured = check(session, case, "f32", pieces)
        replayed = run(session, TOKENS, 1, pieces)
    assert_close(replayed, captured, LIMITS["f32"], "replayed graphs")


def test_decode_equals_prefill(plain: Case) -> None:
    expected = plain.reference.forward(TOKENS)
    with session_of(plain.model(**ALL), n_seq=3) as session:
        for seq, pieces in enumerate(([200], [1] * 200, [37, *[1] * 60, 20, *[1] * 83])):
            assert_close(run(session, TOKENS, seq, pieces), expected, LIMITS["f32"], f"pieces {pieces[:3]}...")


def test_interleaved_sequences(plain: Case) -> None:
    """Four sequences mixed within calls and ubatches; then one token of each a call, as a server decodes."""
    streams = [TOKENS, OTHER, random_tokens(60, 7), random_tokens(90, 8)]
    done, rows = [0] * 4, [[] for _ in streams]  # type: list[int], list[list[torch.Tensor]]
    rng = random.Random(3)
    with session_of(plain.model(**ALL), n_seq=4, n_ubatch=16) as session:

        def advance(parts: list[tuple[int, int]]) -> None:
            tokens: list[int] = []
            seqs: list[int] = []
            for s, n in parts:
                piece = streams[s][done[s] : done[s] + n]
                tokens, seqs, done[s] = tokens + piece, seqs + [s] * len(piece), done[s] + len(piece)
            for s, row in zip(seqs, torch.from_numpy(session.eval(tokens, seqs, want="all")), strict=True):
                rows[s].append(row)

        while sum(done) < 200:
            advance([(rng.randrange(4), rng.choice([1, 1, 2, 5, 20])) for _ in range(rng.randint(1, 5))])
        while any(d < len(stream) for d, stream in zip(done, streams, strict=True)):
            advance([(s, 1) for s in range(4)])
        for s, stream in enumerate(streams):
            assert session.tokens(s) == stream
            assert_close(torch.stack(rows[s]), plain.reference.forward(stream), LIMITS["f32"], f"sequence {s}")


@pytest.mark.parametrize("keep", [199, 180, 161, 100, 17, 0])
def test_rewind(plain: Case, keep: int) -> None:
    """Inside the rings and far beyond them: from a checkpoint, or recomputed. Then the same tokens, and then others."""
    with session_of(plain.model(**ALL), n_ubatch=16) as session:
        run(session, TOKENS)
        for more in (TOKENS[keep:], OTHER[:50]):
            session.rewind(keep)
            held = TOKENS[:keep] + more
            assert_close(run(session, more), plain.reference.forward(held)[keep:], LIMITS["f32"])


def test_fork(plain: Case) -> None:
    with session_of(plain.model(**ALL), n_seq=3) as session:
        run(session, TOKENS[:101])
        session.fork(0, 1)
        session.fork(1, 2)
        branches = {1: OTHER[:40], 0: TOKENS[101:150], 2: OTHER[60:70]}
        for seq, more in branches.items():
            expected = plain.reference.forward(TOKENS[:101] + more)[101:]
            assert_close(run(session, more, seq, [len(more) - 5, 1, 1, 1, 1, 1]), expected, LIMITS["f32"], f"branch {seq}")
        session.rewind(50, 0)
        assert_close(run(session, OTHER[:30]), plain.reference.forward(TOKENS[:50] + OTHER[:30])[50:], LIMITS["f32"])
        held = TOKENS[:101] + OTHER[:60]
        assert_close(run(session, OTHER[40:60], 1), plain.reference.forward(held)[141:], LIMITS["f32"], "branch 1 later")


@cases(*SOME, "moe_1_11")
def test_rewind_fork_and_load_repeat(case: Case, tmp_path: Path) -> None:
    """With real selections and experts: a continuation of the same size from the same state is the same."""
    file = tmp_path / "sequence.session"
    with session_of(case.model(**ALL), n_seq=3) as session:
        run(session, TOKENS[:128])
        session.fork(0, 1)
        session.save(file)
        session.load(file, 2)
        pieces = [40, *[1] * 32]
        first = run(session, TOKENS[128:], 0, pieces)
        assert_close(run(session, TOKENS[128:], 1, pieces), first, LIMIT_SAME, "fork")
        assert_close(run(session, TOKENS[128:], 2, pieces), first, LIMIT_SAME, "loaded")
        session.rewind(128, 0)
        assert_close(run(session, TOKENS[128:], 0, pieces), first, LIMIT_SAME, "rewound")


PLACES: dict[str, dict[str, Any]] = {"GPU": ALL, "half": {"n_gpu_layers": 4, "devices": GPUS[:1]}, "CPU": CPU}


@pytest.mark.parametrize("cache", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("source, target", [("GPU", "CPU"), ("CPU", "GPU"), ("GPU", "half"), ("half", "CPU"), ("GPU", "GPU")])
def test_session_files_go_everywhere(source: str, target: str, cache: str, plain: Case, tmp_path: Path) -> None:
    file, expected = tmp_path / "sequence.session", plain.reference.forward(TOKENS)
    with session_of(plain.model(**PLACES[source]), cache, n_seq=2) as session:
        run(session, OTHER, 0)
        run(session, TOKENS[:130], 1)
        session.save(file, 1)
    with session_of(plain.model(**PLACES[target]), cache, n_seq=2) as session:
        run(session, OTHER[:40], 1)
        session.load(file, 1)
        assert session.tokens(1) == TOKENS[:130]
        assert_close(run(session, TOKENS[130:], 1, [50, *[1] * 20]), expected[130:], LIMITS[cache])
        session.rewind(65, 1)
        assert_close(run(session, TOKENS[65:], 1), expected[65:], LIMITS[cache], "rewound")


def test_sessions_in_threads(everything_selected: Callable[[str], Case]) -> None:
    """Two sessions of one model at the same time."""
    case, results = everything_selected("dense"), {}  # type: Case, dict[int, torch.Tensor]
    streams = [TOKENS, random_tokens(200, 9)]

    def work(model: Model, i: int) -> None:
        with Session(model, SessionParams(512, n_ubatch=32, n_threads=1, type_k="f32", type_v="f32")) as session:
            results[i] = run(session, streams[i], 0, [100, *[1] * 100])

    with case.model(**ALL) as model:
        threads = [threading.Thread(target=work, args=(model, i)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, stream in enumerate(streams):
        assert_close(results[i], case.reference.forward(stream), LIMITS["f32"], f"thread {i}")


def test_generation_repeats(checkpoints: Checkpoints) -> None:
    """LLM on the GPU: greedy text, cancelled and begun again, is the same."""
    path = Case(checkpoints("dense")).gguf()
    with LLM(path, n_ctx=256, n_threads=1, **ALL) as llm:
        assert llm.model.n_gpu_layers == 8
        options: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
        first = llm.generate("Once upon a time", **options).read()
        for i, _ in enumerate(llm.generate("Numbers such as", **options)):
            if i == 5:
                llm.cancel()
        llm.reset()
        assert first and llm.generate("Once upon a time", **options).read() == first


# --- memory ---------------------------------------------------------------------------------------------------------------------------


def test_out_of_memory_is_an_exception_and_no_more(checkpoints: Checkpoints) -> None:
    """It names what was asked for and what was free; sessions that exist, and new ones, go on."""
    path, n_ctx = Case(checkpoints("dense")).gguf(), 2**28  # 384 GiB of pages
    with LLM(path, n_ctx=256, n_threads=1, **ALL) as llm:
        before = llm.logits(TOKENS)
        for _ in range(3):
            with pytest.raises(MemoryError) as caught:
                LLM(path, n_ctx=n_ctx, type_k="f32", type_v="f32", n_threads=1, **ALL)
            assert isinstance(caught.value, errors.OutOfMemoryError)
            found = re.search(rf"cannot allocate (\d+) bytes on {GPUS[0]}, (\d+) of (\d+) are free .*{n_ctx}", str(caught.value))
            assert found is not None, str(caught.value)
            asked, free, total = map(int, found.groups())
            assert asked > total >= free > 0
        assert_close(torch.from_numpy(llm.logits(TOKENS)), torch.from_numpy(before), LIMIT_SAME)
        assert llm.generate("Once upon a time", max_tokens=8, ignore_eos=True).read()
    with LLM(path, n_ctx=256, n_threads=1, **ALL) as llm:
        assert llm.generate("Once upon a time", max_tokens=8, ignore_eos=True).read()


def test_memory_comes_back(checkpoints: Checkpoints) -> None:
    """Loading and closing again and again leaves no memory taken (other programs may use the GPU: so many megabytes are forgiven)."""
    case = Case(checkpoints("dense"))

    def once() -> int:
        with session_of(case.model(**ALL), n_ctx=2**18, n_ubatch=512) as session:
            run(session, TOKENS, 0, [150, *[1] * 50])
            assert sum(row.pages for row in session.device_memory()) > 2**28
        return devices()[0].memory_free

    first = [once() for _ in range(3)][-1]
    last = [once() for _ in range(6)][-1]
    assert first - last < 2**28


# --- several devices ------------------------------------------------------------------------------------------------------------------

ON_TWO = """
import json, sys
import numpy as np
from pyhysparse import Model, Session, SessionParams, devices

path, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokens = json.loads(sys.stdin.read())
params = SessionParams(1024, n_ubatch=64, n_threads=1, type_k="f32", type_v="f32")
with Model(path, **options) as model, Session(model, params) as session:
    rows = [session.eval(tokens[:150], want="all"), *(session.eval([token]) for token in tokens[150:])]
    session.rewind(100)
    rows.append(session.eval(tokens[100:], want="all"))
    np.save(out, np.concatenate(rows))
    memory = [[row.device, row.weights, row.pages, row.rings] for row in session.device_memory()]
    print(json.dumps({"devices": [d.name for d in devices()], "layers": [layer.device for layer in model.layers], "memory": memory,
                      "placement": model.placement, "n_gpu_layers": model.n_gpu_layers}))
"""


@pytest.mark.parametrize("options, share", [
    ({"n_gpu_layers": "auto"}, 0.5), ({"n_gpu_layers": "all"}, 0.5), ({"n_gpu_layers": "all", "tensor_split": [3, 1]}, 0.75),
    ({"n_gpu_layers": "all", "tensor_split": [1, 3]}, 0.25),
    ({"n_gpu_layers": "all", "tensor_split": [3, 1], "devices": "CUDA1,CUDA0"}, 0.25),
    ({"n_gpu_layers": "all", "tensor_split": [1, 0]}, 1.0), ({"n_gpu_layers": 20, "tensor_split": [1, 1]}, 0.5)], ids=str)  # fmt: skip
def test_two_devices(options: dict[str, Any], share: float, everything_selected: Callable[[str], Case], tmp_path: Path) -> None:
    """Two GPUs, or one that ggml divides in two (which must be said before the process first touches CUDA, so in a process of its own)."""
    case, out = everything_selected("pattern_7b"), tmp_path / "logits.npy"
    environment = {**os.environ, **({} if len(GPUS) > 1 else {"GGML_CUDA_DEVICES": "2"})}
    options = {"devices": "CUDA0,CUDA1", **options}
    command = [sys.executable, "-c", ON_TWO, str(case.gguf()), str(out), json.dumps(options)]
    done = subprocess.run(command, input=json.dumps(TOKENS), capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["devices"][:2] == ["CUDA0", "CUDA1"]
    on_gpus = [device for device in report["layers"] if device != "CPU"]
    order = [device for device in options["devices"].split(",") if device in on_gpus]
    assert sorted(on_gpus, key=order.index) == on_gpus, "layers in the order of the devices"
    assert len(order) == (1 if share == 1 else 2) and [row[0] for row in report["memory"]] == [*order, "CPU"]
    group = 4 / len(on_gpus)  # a full layer and the three that read its cache stay together
    assert on_gpus.count("CUDA0") / len(on_gpus) == pytest.approx(share, abs=1.2 * group)
    assert report["n_gpu_layers"] == (37 if options["n_gpu_layers"] != 20 else len(on_gpus) + 1)
    for device, weights, pages, _ in report["memory"][:-1]:
        assert weights > 0 and pages > 0 and f"{device}: layers" in report["placement"]
    expected = case.reference.forward(TOKENS)
    assert_close(torch.from_numpy(np.load(out)), torch.cat([expected, expected[100:]]), LIMITS["f32"])
