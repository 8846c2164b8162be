"""Oracle mode for stock models (SPEC 5, training-free) against the reference, and how it is switched on."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.compare import NodeRecorder, assert_close, assert_same_greedy, reference_with_choices_of
from reference.model import HySparseForCausalLM, OracleLlama
from reference.runtime import Model, opened, to_gguf
from reference.tiny import VOCAB_SIZE

from pyhysparse import errors

Checkpoints = Callable[[str], Path]
TOKENS = torch.randint(0, VOCAB_SIZE, (200,), generator=torch.Generator().manual_seed(5)).tolist()
OPTIONS: dict[str, dict[str, Any]] = {
    "blocks of 16": {"full_layers": [0, 2], "block_size": 16, "top_k_tokens": 48, "window": 20},
    "one full layer": {"full_layers": [0], "block_size": 8, "top_k_tokens": 32, "window": 5},
    "block is no page": {"full_layers": [0, 1], "block_size": 24, "top_k_tokens": 48, "window": 30},
    "window of one token": {"full_layers": [0, 3], "block_size": 10, "top_k_tokens": 10, "window": 1},
    "window beyond the block": {"full_layers": [0, 2], "block_size": 16, "top_k_tokens": 16, "window": 100},
}


@pytest.mark.parametrize("name", ["llama", "llama3_rope", "qwen2", "qwen3"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_reference(name: str, options: dict[str, Any], checkpoints: Checkpoints) -> None:
    checkpoint, recorder = checkpoints(name), NodeRecorder(("selection",))
    with opened(to_gguf(checkpoint), oracle=options) as session:
        session.capture(recorder)
        logits = session.eval(TOKENS)
    model = OracleLlama.from_stock(checkpoint, **options, dtype=torch.float64)
    expected, _, _ = reference_with_choices_of(recorder.nodes(), model, TOKENS, tie=1e-3)
    assert_close(logits, expected, 1e-5)
    assert_same_greedy(logits, expected)
    full = HySparseForCausalLM.from_checkpoint(checkpoint).forward(TOKENS)
    with pytest.raises(AssertionError, match="NMSE"):
        assert_close(logits, full, 1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_everything_selected_equals_full_attention(name: str, checkpoints: Checkpoints) -> None:
    """K*B >= context: the result of full attention, whatever the window."""
    path = to_gguf(checkpoints(name))
    with opened(path) as session:
        full = session.eval(TOKENS)
    for window in (1, 30):
        with opened(path, oracle={"full_layers": [0, 2], "block_size": 16, "top_k_tokens": 208, "window": window}) as session:
            assert_close(session.eval(TOKENS), full, 1e-9)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_splits_and_rewind(options: dict[str, Any], checkpoints: Checkpoints) -> None:
    path = to_gguf(checkpoints("llama"))
    with opened(path, oracle=options, n_ubatch=256) as session:
        whole = session.eval(TOKENS)
    with opened(path, oracle=options, n_seq=2) as session:
        rows = [session.eval(TOKENS[:33]), session.eval(TOKENS[33:160]), *(session.eval([token]) for token in TOKENS[160:])]
        assert_close(torch.cat(rows), whole, 1e-6)
        session.fork(0, 1)
        session.rewind(70, 1)
        assert_close(session.eval(TOKENS[70:], 1), whole[70:], 1e-6)


def test_rewind_evaluates_nothing(checkpoints: Checkpoints) -> None:
    """Everything lies in pages, the forced window too: nothing has to be recomputed, however far back."""
    nodes: list[str] = []
    with opened(to_gguf(checkpoints("llama")), oracle=OPTIONS["blocks of 16"], n_checkpoints=0) as session:
        session.eval(TOKENS)
        session.capture(lambda name, values: nodes.append(name))
        session.rewind(10)
    assert not nodes


def test_off_by_default(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints("llama")
    model = Model(to_gguf(checkpoint))
    assert not model.oracle and model.layer_kinds() == ["full"] * 4
    model.close()
    with opened(to_gguf(checkpoint)) as session:
        assert_close(session.eval(TOKENS), HySparseForCausalLM.from_checkpoint(checkpoint).forward(TOKENS), 1e-5)


def test_layer_plan(checkpoints: Checkpoints) -> None:
    model = Model(to_gguf(checkpoints("llama")), oracle={"full_layers": [0, 2], "block_size": 16, "top_k_tokens": 48, "window": 20})
    assert model.oracle and model.layer_kinds() == ["full", "sparse", "full", "sparse"]
    assert (model.block_size, model.top_k_blocks, model.window) == (16, 3, 20)
    model.close()


def test_a_model_without_a_list_needs_one(checkpoints: Checkpoints) -> None:
    with pytest.raises(errors.ArgumentError, match="full_layers"):
        Model(to_gguf(checkpoints("llama")), oracle=True)


@pytest.mark.parametrize("change,message", [
    ({"full_layers": [1, 2]}, "full_layers"), ({"full_layers": [0, 2, 2]}, "full_layers"), ({"full_layers": [0, 4]}, "full_layers"),
    ({"top_k_tokens": 40}, "top_k_tokens"), ({"block_size": -1}, "block_size"), ({"window": -3}, "window")], ids=str)
def test_bad_options_are_refused(change: dict[str, Any], message: str, checkpoints: Checkpoints) -> None:
    options = {**OPTIONS["blocks of 16"], **change}
    with pytest.raises(errors.ArgumentError, match=message):
        Model(to_gguf(checkpoints("llama")), oracle=options)


def test_a_hysparse_model_has_no_oracle_mode(checkpoints: Checkpoints) -> None:
    with pytest.raises(errors.ArgumentError, match="full"):
        Model(to_gguf(checkpoints("dense")), oracle={"full_layers": [0], "block_size": 16, "top_k_tokens": 48, "window": 20})
