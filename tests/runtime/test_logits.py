"""Every preset: checkpoint -> GGUF -> runtime, against the reference model (SPEC 8); and that splitting a prompt does not matter."""
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.compare import NodeRecorder, assert_close, assert_same_greedy, check_choice, reference_with_choices_of, selection_mask
from reference.model import HySparseForCausalLM, Trace
from reference.presets import PRESETS
from reference.runtime import Model, Session, opened, to_gguf
from reference.tiny import VOCAB_SIZE, make_preset

from pyhysparse import LLM

Checkpoints = Callable[[str], Path]
# Longer than the window (24), the ring (24 - 1 + 16) and 12 blocks of 16. The same tokens as in test_reference.py, which checks that no
# preset has a near-tie in them that float32 could flip.
TOKENS = torch.randint(0, VOCAB_SIZE, (200,), generator=torch.Generator().manual_seed(5)).tolist()
SPLIT = ["dense", "sinks_all", "hybrid_swa", "kv_heads_differ", "heads_192_128", "block_8", "block_24", "block_10_top_1", "window_long",
         "moe_groups", "pattern_7b"]


def reference_logits(checkpoint: Path) -> torch.Tensor:
    return HySparseForCausalLM.from_checkpoint(checkpoint, torch.float64).forward(TOKENS)


@pytest.mark.parametrize("name", PRESETS)
def test_f32_equals_reference(name: str, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints(name)
    expected = reference_logits(checkpoint)
    with opened(to_gguf(checkpoint)) as session:
        logits = session.eval(TOKENS)
    assert_close(logits, expected, 1e-5)
    assert_same_greedy(logits, expected)


@pytest.mark.parametrize("name", PRESETS)
def test_f16_equals_reference(name: str, checkpoints: Checkpoints) -> None:
    """F16 weights and caches. Their rounding flips near-ties, so the runtime's choices are checked and then given to the reference."""
    checkpoint = checkpoints(name)
    recorder = NodeRecorder(("selection", "ffn_moe_topk"))
    with opened(to_gguf(checkpoint, "f16"), cache="f16") as session:
        session.capture(recorder)
        logits = session.eval(TOKENS)
    model = HySparseForCausalLM.from_checkpoint(checkpoint)
    expected, _, _ = reference_with_choices_of(recorder.nodes(), model, TOKENS, tie=0.1)  # seen: 0.03
    assert_close(logits, expected, 1e-3)


STAGES = ("attn_norm", "attn_out", "ffn_out", "l_out", "result_norm")


@pytest.mark.parametrize("name", ["dense", "moe_shared", "hybrid_swa"])
def test_every_stage_equals_reference(name: str, checkpoints: Checkpoints) -> None:
    """Node by node in layer order, so that the first wrong one is named."""
    checkpoint = checkpoints(name)
    trace, recorder = Trace(), NodeRecorder((*STAGES, "selection"))
    model = HySparseForCausalLM.from_checkpoint(checkpoint, torch.float64)
    model.forward(TOKENS, trace)
    with opened(to_gguf(checkpoint)) as session:
        session.capture(recorder)
        session.eval(TOKENS)
    nodes = recorder.nodes()
    for stage, expected in trace.stages.items():
        assert stage in nodes, f"the graph has no node {stage}"
        if stage.startswith("selection"):
            il = int(stage.rsplit("-", 1)[1])
            check_choice(selection_mask(nodes[stage], expected.shape[-1]), trace.scores[il], 1e-3, stage)
        else:
            assert_close(nodes[stage], expected, 1e-5, stage)
    assert nodes.keys() == trace.stages.keys()


@pytest.mark.parametrize("name", ["sinks_all", "block_8", "moe_groups"])
def test_long_context(name: str, checkpoints: Checkpoints) -> None:
    """1500 tokens: many pages, 94 or 188 blocks of which 4 or 5 are read; near-ties of SPEC 8 are given to the reference."""
    checkpoint, recorder = checkpoints(name), NodeRecorder(("selection", "ffn_moe_topk"))
    tokens = torch.randint(0, VOCAB_SIZE, (1500,), generator=torch.Generator().manual_seed(6)).tolist()
    with opened(to_gguf(checkpoint), n_ctx=1536, n_ubatch=200) as session:
        session.capture(recorder)
        logits = session.eval(tokens)
    model = HySparseForCausalLM.from_checkpoint(checkpoint)
    expected, _, swaps = reference_with_choices_of(recorder.nodes(), model, tokens, tie=1e-3)
    assert swaps <= 3, "more near-ties than float32 explains"
    assert_close(logits, expected, 1e-5)
    assert_same_greedy(logits, expected)


def test_wrong_choices_are_noticed() -> None:
    """The near-tie rule of compare.py lets swaps of equal scores pass and nothing else."""
    scores = torch.tensor([[[-0.1, -0.5, -0.5004, -2.0]]])

    def choose(*ids: int) -> torch.Tensor:
        return torch.zeros_like(scores, dtype=torch.bool).index_fill(-1, torch.tensor(ids), True)

    assert check_choice(choose(0, 1), scores, 1e-3, "x") == 0
    assert check_choice(choose(0, 2), scores, 1e-3, "x") == 1
    with pytest.raises(AssertionError, match="below the best"):
        check_choice(choose(0, 3), scores, 1e-3, "x")
    with pytest.raises(AssertionError, match="not visible"):
        check_choice(choose(0, 1), torch.tensor([[[-0.1, -torch.inf, -torch.inf, -torch.inf]]]), 1e-3, "x")


def eval_in_pieces(session: Session, tokens: list[int], sizes: list[int]) -> torch.Tensor:
    rows, start = [], 0
    for size in sizes:
        rows.append(session.eval(tokens[start:start + size]))
        start += size
    assert start == len(tokens)
    return torch.cat(rows)


def random_sizes(total: int, largest: int, seed: int) -> list[int]:
    rng, sizes = random.Random(seed), []  # type: random.Random, list[int]
    while sum(sizes) < total:
        sizes.append(min(rng.randint(1, largest), total - sum(sizes)))
    return sizes


@pytest.mark.parametrize("name", SPLIT)
def test_splits_do_not_matter(name: str, checkpoints: Checkpoints) -> None:
    """One ubatch, ubatches of 16 and 7 tokens, random pieces, and one token at a time give the same logits."""
    path, n = to_gguf(checkpoints(name)), len(TOKENS)
    with opened(path, n_ubatch=256) as session:
        whole = session.eval(TOKENS)
    splits: list[tuple[int, list[int]]] = [(16, [n]), (7, [n]), (16, random_sizes(n, 40, 1)), (64, random_sizes(n, 90, 2)), (16, [1] * n)]
    for n_ubatch, sizes in splits:
        with opened(path, n_ubatch=n_ubatch) as session:
            assert_close(eval_in_pieces(session, TOKENS, sizes), whole, 1e-6, f"n_ubatch {n_ubatch}, pieces {sizes[:6]}...")


@pytest.mark.parametrize("name", ["dense", "moe_groups", "hybrid_swa"])
def test_wanted_rows(name: str, checkpoints: Checkpoints) -> None:
    """Logits of some tokens, of the last only, or of none leave the same state and give the same rows."""
    wanted = [i % 7 == 3 or i == 199 for i in range(200)]
    with opened(to_gguf(checkpoints(name)), n_seq=3) as session:
        whole = session.eval(TOKENS)
        assert_close(session.eval(TOKENS, 1, wanted), whole[torch.tensor(wanted)], 1e-10)
        assert len(session.eval(TOKENS[:150], 2, [False] * 150)) == 0
        assert_close(session.eval(TOKENS[150:], 2), whole[150:], 1e-6)


@pytest.mark.parametrize("name", ["dense", "heads_192_128", "block_10_top_1"])
def test_kernels_equal_the_scalar_reference_ops(name: str, checkpoints: Checkpoints) -> None:
    path = to_gguf(checkpoints(name))
    with opened(path) as kernels, opened(path, use_ref=True) as scalar:
        assert_close(kernels.eval(TOKENS), scalar.eval(TOKENS), 1e-9)


@pytest.mark.parametrize("options", [{"n_threads": 1}, {"n_threads": 3}, {"n_ctx": 256}, {"n_batch": 32}], ids=str)
def test_parameters_that_must_not_matter(options: dict[str, Any], checkpoints: Checkpoints) -> None:
    path = to_gguf(checkpoints("dense"))
    with opened(path) as usual, opened(path, **options) as other:
        assert_close(other.eval(TOKENS), usual.eval(TOKENS), 1e-9)


@pytest.mark.parametrize("cache,tolerance", [("f16", 1e-5), ("q8_0", 5e-3)])
@pytest.mark.parametrize("name", ["all_full", "dense", "sinks_all", "hybrid_swa", "heads_192_128"])
def test_cache_types(name: str, cache: str, tolerance: float, checkpoints: Checkpoints) -> None:
    """Rounded caches over F32 weights: near the reference that is given the same selections."""
    checkpoint, recorder = checkpoints(name), NodeRecorder(("selection",))
    with opened(to_gguf(checkpoint), cache=cache) as session:
        session.capture(recorder)
        logits = session.eval(TOKENS)
    model = HySparseForCausalLM.from_checkpoint(checkpoint)
    expected, _, _ = reference_with_choices_of(recorder.nodes(), model, TOKENS, tie=0.3)
    assert_close(logits, expected, tolerance)


@pytest.mark.parametrize("name", ["dense", "moe_groups"])
def test_bf16_checkpoint(name: str, tmp_path: Path) -> None:
    """A checkpoint stored in bfloat16, converted to F32: no rounding anywhere."""
    checkpoint = make_preset(tmp_path, name, torch_dtype="bfloat16")
    with opened(to_gguf(checkpoint)) as session:
        assert_close(session.eval(TOKENS), HySparseForCausalLM.from_checkpoint(checkpoint, torch.float64).forward(TOKENS), 1e-5)


@pytest.mark.parametrize("repack", [True, False])
@pytest.mark.parametrize("name,tolerance", [("all_full", 3e-3), ("dense", 8e-3), ("heads_192_128", 8e-3), ("moe_groups", 1e-2)])
def test_q8_0_weights(name: str, tolerance: float, repack: bool, checkpoints: Checkpoints) -> None:
    """Q8_0 weights, in ggml's repacked buffers or not: loosely near the reference that is given the same choices."""
    checkpoint, recorder = checkpoints(name), NodeRecorder(("selection", "ffn_moe_topk"))
    model = Model(to_gguf(checkpoint, "q8_0"), repack=repack)
    session = Session(model)
    session.capture(recorder)
    logits = session.eval(TOKENS)
    session.close()
    model.close()
    reference = HySparseForCausalLM.from_checkpoint(checkpoint)
    expected, _, _ = reference_with_choices_of(recorder.nodes(), reference, TOKENS, tie=1.0)
    assert_close(logits, expected, tolerance)


@pytest.mark.parametrize("name,kinds", [
    ("pattern_7b", "full sparse sparse sparse full"),
    ("dense", "full sparse sparse full sliding sparse full")])
def test_layer_plan_is_the_checkpoints(name: str, kinds: str, checkpoints: Checkpoints) -> None:
    model = Model(to_gguf(checkpoints(name)))
    try:
        assert model.layer_kinds()[:len(kinds.split())] == kinds.split()
        assert (model.block_size, model.top_k_blocks, model.window, model.oracle) == (16, 4, 24, False)
    finally:
        model.close()


def test_the_python_api_gives_the_same(checkpoints: Checkpoints) -> None:
    """LLM.logits, and eval with last_logits, are these logits; logits() leaves the conversation alone."""
    checkpoint = checkpoints("dense")
    expected = reference_logits(checkpoint)
    with LLM(str(to_gguf(checkpoint)), n_ctx=256, n_ubatch=16, type_k="f32", type_v="f32", n_threads=1) as llm:
        llm.eval(TOKENS[:50])
        assert_close(torch.from_numpy(llm.logits(TOKENS)), expected, 1e-5)
        llm.eval(TOKENS[50:51])
        assert_close(torch.from_numpy(llm.last_logits)[None], expected[50:51], 1e-5)
        llm.reset()
        llm.eval(TOKENS)
        assert_close(torch.from_numpy(llm.last_logits)[None], expected[-1:], 1e-5)
