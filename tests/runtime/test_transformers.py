"""Stock architectures against transformers: random tiny checkpoints of each family, and the real SmolLM2-135M-Instruct."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reference.compare import NodeRecorder, assert_close, assert_same_greedy, reference_with_choices_of
from reference.model import OracleLlama
from reference.runtime import Model, opened, to_gguf
from reference.stock import STOCK, transformers_logits
from reference.tiny import VOCAB_SIZE
from tokenizers import Tokenizer

TOKENS = torch.randint(0, VOCAB_SIZE, (200,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize("name", STOCK)
def test_f32_equals_transformers(name: str, checkpoints: Callable[[str], Path]) -> None:
    checkpoint = checkpoints(name)
    expected = transformers_logits(checkpoint, TOKENS)
    with opened(to_gguf(checkpoint)) as session:
        whole = session.eval(TOKENS)
        session.remove()
        rows = [session.eval(TOKENS[:150]), *(session.eval([token]) for token in TOKENS[150:])]
    assert_close(whole, expected, 1e-5)
    assert_same_greedy(whole, expected)
    assert_close(torch.cat(rows), whole, 1e-6, "150 tokens and then one by one")


# --- SmolLM2: real weights ------------------------------------------------------------------------------------------------------------
SMOLLM2_TOOL = Path(__file__).resolve().parents[2].parent / "shared" / "tools" / "smollm2_to_hf.py"
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "Water boils at 100 degrees Celsius. At high altitude,",
]
N_GENERATED = 64


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SMOLLM2_TOOL.exists():
        pytest.skip("smollm2_to_hf.py is not beside this checkout (../shared/tools)")
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    made = subprocess.run([sys.executable, str(SMOLLM2_TOOL), str(folder), "--dtype", "float32"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"smollm2_to_hf.py failed: {made.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def smollm2_texts(smollm2: Path) -> list[tuple[list[int], list[int], torch.Tensor]]:
    """Of transformers, for each prompt: its tokens, the greedy continuation, and the logits of all those positions."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation="eager")
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=N_GENERATED, min_new_tokens=N_GENERATED, do_sample=False, eos_token_id=None,
                                 pad_token_id=0)
            logits = model(out).logits[0]
        texts.append((ids[0].tolist(), out[0, ids.shape[1]:].tolist(), logits))
    return texts


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2: Path, smollm2_texts: list[tuple[list[int], list[int], torch.Tensor]]) -> None:
    """Greedy text of 5 prompts x 64 tokens equal in F32, logits of every position NMSE <= 1e-5."""
    with opened(to_gguf(smollm2), n_ctx=512, n_ubatch=64) as session:
        for prompt, continuation, expected in smollm2_texts:
            session.remove()
            rows = [session.eval(prompt)]
            generated: list[int] = []
            while len(generated) < N_GENERATED:
                generated.append(int(rows[-1][-1].argmax()))
                rows.append(session.eval(generated[-1:]))
            assert generated == continuation
            assert_close(torch.cat(rows), expected, 1e-5)


def test_smollm2_has_its_calibrated_list(smollm2: Path) -> None:
    """Oracle mode without a list: SPEC 5's, for this model only."""
    model = Model(to_gguf(smollm2), oracle=True)
    kinds = model.layer_kinds()
    assert [il for il, kind in enumerate(kinds) if kind == "full"] == [0, 3, 7, 8, 14, 18, 20, 23]
    assert (model.block_size, model.top_k_blocks, model.window) == (64, 16, 128)
    model.close()


@pytest.mark.slow
def test_smollm2_oracle_mode_equals_reference(smollm2: Path) -> None:
    """Real weights, small blocks: the text of this file, of which a quarter or less is read by 22 layers."""
    options: dict[str, Any] = {"full_layers": [0, 3, 7, 8, 14, 18, 20, 23], "block_size": 16, "top_k_tokens": 64, "window": 32}
    tokens = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(Path(__file__).read_text()).ids[:400]
    recorder = NodeRecorder(("selection",))
    with opened(to_gguf(smollm2), oracle=options, n_ctx=512, n_ubatch=64) as session:
        session.capture(recorder)
        logits = session.eval(tokens)
    model = OracleLlama.from_stock(smollm2, **options)
    expected, _, _ = reference_with_choices_of(recorder.nodes(), model, tokens, tie=1e-3)
    assert_close(logits, expected, 1e-5)
    assert_same_greedy(logits, expected)
