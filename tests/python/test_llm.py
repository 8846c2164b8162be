"""The LLM class on a tiny random HySparse model: generation, reuse of what is evaluated already, logits, files, endings."""

from __future__ import annotations

import gc
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhysparse import LLM, Model, Session, SessionParams, errors, logs_to_logging, logs_to_stderr

PROMPT = "Once upon a time there was a small model that could read a very long story. The sparse layers"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def nmse(x: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    return float(((x - reference) ** 2).sum() / (reference**2).sum())


def greedy_reference(llm: LLM, prompt: list[int], n: int) -> list[int]:
    """Greedy tokens from full recomputation in sessions of their own."""
    ids = list(prompt)
    for _ in range(n):
        row = llm.logits(ids)[-1]
        row[list(llm.tokenizer.eog_ids)] = -np.inf
        ids.append(int(row.argmax()))
    return ids[len(prompt) :]


def test_generate(tiny: LLM) -> None:
    prompt = tiny.tokenize(PROMPT)
    generation = tiny.generate(PROMPT, max_tokens=12, **GREEDY)
    pieces = list(generation)
    assert generation.tokens == greedy_reference(tiny, prompt, 12)
    assert "".join(pieces) == generation.text == tiny.detokenize(generation.tokens)
    assert generation.finish_reason == "length"
    assert (generation.timings.prompt_tokens, generation.timings.generated_tokens) == (len(prompt), 12)
    assert generation.timings.prompt_per_second > 0 and generation.timings.generation_per_second > 0
    assert tiny.timings is generation.timings


def test_issue_example(tiny: LLM) -> None:
    for piece in tiny.generate("Once upon a time", max_tokens=8, temperature=0.8):
        assert isinstance(piece, str)
    assert isinstance(tiny.chat([{"role": "user", "content": "Hi"}], max_tokens=8), str)
    tokens = tiny.tokenize("Once upon a time")
    logits = tiny.logits(tokens)
    assert logits.shape == (len(tokens), tiny.n_vocab) and logits.dtype == np.float32
    tiny.reset()
    tiny.eval(tokens)
    assert tiny.last_logits.shape == (tiny.n_vocab,) and tiny.last_logits.dtype == np.float32
    assert nmse(tiny.last_logits, logits[-1]) < 1e-10


def test_seed_and_sampling(tiny: LLM) -> None:
    def text(**options: Any) -> str:
        return tiny.generate(PROMPT, max_tokens=10, ignore_eos=True, **options).read()

    assert text(seed=7, temp=1.5) == text(seed=7, temp=1.5)
    assert len({text(seed=seed, temp=1.5) for seed in range(6)}) > 1
    assert text(top_k=1, seed=3) == text(temperature=0)
    assert text(temperature=0, repeat_penalty=1.8, repeat_last_n=-1) != text(temperature=0)
    assert isinstance(text(dry_multiplier=0.8, seed=1), str)
    with pytest.raises(errors.ArgumentError, match="top_q"):
        tiny.generate(PROMPT, top_q=1)  # type: ignore[call-arg]


def test_prefix_reuse(tiny: LLM) -> None:
    """A prompt that begins like the conversation is not evaluated anew, and the result is as if it were."""
    ids = tiny.tokenize(PROMPT)
    tiny.generate(ids, max_tokens=4, **GREEDY).read()
    changed = [*ids[:-3], *ids[:6]]
    again = tiny.generate(changed, max_tokens=6, **GREEDY)
    again.read()
    assert again.timings.prompt_cached == len(ids) - 3 and again.timings.prompt_tokens == 6
    tiny.reset()
    fresh = tiny.generate(changed, max_tokens=6, **GREEDY)
    fresh.read()
    assert fresh.timings.prompt_cached == 0 and fresh.tokens == again.tokens
    same = tiny.generate(changed, max_tokens=6, **GREEDY)
    same.read()
    assert same.timings.prompt_tokens == 1 and same.tokens == fresh.tokens


def test_logits_do_not_touch_the_conversation(tiny: LLM) -> None:
    tiny.eval(tiny.tokenize(PROMPT))
    before, held = tiny.last_logits, tiny.tokens
    tiny.logits(tiny.tokenize("something else entirely"))
    assert tiny.tokens == held and (tiny.last_logits == before).all()
    assert tiny.logits([]).shape == (0, tiny.n_vocab)


def test_eval_in_parts(tiny: LLM) -> None:
    ids = tiny.tokenize(PROMPT)
    tiny.eval(ids)
    whole = tiny.last_logits
    tiny.reset()
    tiny.eval(ids[:7])
    for token in ids[7:]:
        tiny.eval([token])
    assert nmse(tiny.last_logits, whole) < 1e-6
    assert tiny.tokens == ids


def test_continue_from_the_conversation(tiny: LLM) -> None:
    ids = tiny.tokenize(PROMPT)
    tiny.eval(ids)
    generation = tiny.generate(None, max_tokens=5, **GREEDY)
    generation.read()
    assert generation.tokens == greedy_reference(tiny, ids, 5)
    further = tiny.generate(None, max_tokens=50, **GREEDY)
    next(further)
    further.close()
    last = tiny.generate(None, max_tokens=3, **GREEDY)
    last.read()
    made = generation.tokens + further.tokens + last.tokens
    assert len(made) < 30 and made == greedy_reference(tiny, ids, len(made))  # no token twice, none left out
    late = tiny.generate(None, max_tokens=3, **GREEDY)
    tiny.reset()
    with pytest.raises(errors.StateError, match="no logits"):
        next(late)
    with pytest.raises(errors.StateError, match="eval"):
        tiny.generate(None)
    with pytest.raises(errors.StateError, match="nothing was evaluated"):
        _ = tiny.last_logits


def test_leaving_the_loop_early(tiny: LLM) -> None:
    for _piece in tiny.generate(PROMPT, max_tokens=100, **GREEDY):
        break
    n = len(tiny.tokens)
    assert n == len(tiny.tokenize(PROMPT))  # nothing ran on
    assert tiny.generate(PROMPT, max_tokens=3, **GREEDY).read()


def test_a_generation_left_open_does_not_lock(tiny: LLM) -> None:
    first = tiny.generate(PROMPT, max_tokens=100, **GREEDY)
    next(first)
    assert tiny.generate("A window", max_tokens=3, **GREEDY).read()
    with pytest.raises(errors.BusyError):
        next(first)


def test_stop_strings(tiny: LLM) -> None:
    full = tiny.generate(PROMPT, max_tokens=20, **GREEDY).read()
    stop = full[8:11]
    generation = tiny.generate(PROMPT, max_tokens=20, stop=[stop, "never in there"], **GREEDY)
    text = generation.read()
    assert text == full[: full.index(stop)] and generation.finish_reason == "stop"


def test_end_of_text(tiny: LLM) -> None:
    end = min(tiny.tokenizer.eog_ids)
    generation = tiny.generate(PROMPT, max_tokens=20, temperature=0, logit_bias={end: 1e9})
    assert generation.read() == "" and generation.finish_reason == "stop" and generation.tokens == [end]
    generation = tiny.generate(PROMPT, max_tokens=20, temperature=0, special=True, logit_bias={end: 1e9})
    assert generation.read() == tiny.detokenize([end], special=True)


def test_limits(tiny: LLM) -> None:
    assert tiny.generate(PROMPT, max_tokens=0).read() == ""
    generation = tiny.generate(PROMPT, **GREEDY)
    generation.read()
    assert generation.finish_reason == "length" and len(tiny.tokens) == tiny.n_ctx
    with pytest.raises(errors.ContextFullError, match=r"300 tokens.*256"):
        tiny.generate([5] * 300)
    with pytest.raises(errors.ContextFullError):
        tiny.eval([5])
    tiny.reset()
    assert tiny.generate(PROMPT, max_tokens=2, **GREEDY).read() is not None
    for bad in (-5, 1.5, True):
        with pytest.raises(errors.ArgumentError, match="max_tokens"):
            tiny.generate(PROMPT, max_tokens=bad)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match="no tokens"):
        tiny.generate([])
    with pytest.raises(errors.ArgumentError, match="empty"):
        tiny.eval([])
    with pytest.raises(errors.ArgumentError, match=r"320"):
        tiny.eval([320])
    with pytest.raises(errors.ArgumentError, match="float"):
        tiny.eval([1.5])  # type: ignore[list-item]
    with pytest.raises(errors.ArgumentError, match="32-bit"):
        tiny.eval([2**40])


def test_save_and_load(tiny: LLM, tiny_path: Path, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    ids = tiny.tokenize(PROMPT)
    tiny.eval(ids)
    tiny.save(tmp_path / "s.hss")
    expected = tiny.generate([*ids, 40], max_tokens=5, **GREEDY).read()
    with LLM(tiny_path, n_ctx=256, n_ubatch=16, n_threads=1, type_k="f32", type_v="f32") as other:
        other.load(tmp_path / "s.hss")
        assert other.tokens == ids
        generation = other.generate([*ids, 40], max_tokens=5, **GREEDY)
        assert generation.read() == expected and generation.timings.prompt_tokens == 1
        (tmp_path / "bad").write_bytes(b"nonsense")
        with pytest.raises(errors.FormatError, match="bad"):
            other.load(tmp_path / "bad")
        assert other.tokens == []
        with pytest.raises(errors.FileError, match="none"):
            other.load(tmp_path / "none")
    with LLM(tiny_path, n_ctx=256, n_ubatch=16, n_threads=1) as other, pytest.raises(errors.StateError):
        other.load(tmp_path / "s.hss")  # f16 caches


def test_keyboard_interrupt_in_a_prompt(tiny: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes between two ubatches: what was evaluated stays, and the session goes on."""
    calls = 0
    real = Session._eval_part

    def interrupted(self: Session, *args: Any) -> None:
        nonlocal calls
        calls += 1
        real(self, *args)
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_eval_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.generate(PROMPT, max_tokens=5).read()
    monkeypatch.undo()
    ids = tiny.tokenize(PROMPT)
    assert tiny.tokens == ids[:32]
    with pytest.raises(errors.StateError):
        _ = tiny.last_logits
    generation = tiny.generate(PROMPT, max_tokens=5, **GREEDY)
    generation.read()
    assert generation.timings.prompt_cached == 32 and generation.tokens == greedy_reference(tiny, ids, 5)


def test_close_and_context_manager(tiny_path: Path) -> None:
    llm = LLM(tiny_path, n_ctx=64)
    ids = llm.tokenize("The")
    session = llm.session
    llm.close()
    llm.close()
    assert llm.closed and session.closed
    for call in (
        lambda: llm.eval(ids),
        lambda: llm.logits(ids),
        llm.reset,
        lambda: llm.generate("x", max_tokens=1).read(),
        lambda: llm.tokens,
        lambda: llm.save("x"),
        lambda: llm.memory,
        llm.cancel,
        lambda: llm.model.layers,
        lambda: llm.model.gguf.tensors,
    ):
        with pytest.raises(errors.ClosedError):
            call()
    assert "closed" in repr(llm)


def test_dropping_frees(tiny_path: Path) -> None:
    llm = LLM(tiny_path, n_ctx=64)
    generation: Iterator[str] = llm.generate("The", max_tokens=5)
    next(generation)
    session = weakref.ref(llm.session)
    del llm
    next(generation)  # a generation keeps its model
    del generation
    gc.collect()
    assert session() is None


def test_sessions_outlive_nothing(tiny_path: Path) -> None:
    """Whatever order Python drops them in, a session's memory is freed before its model's."""
    for _ in range(5):
        model = Model(tiny_path)
        sessions = [Session(model, SessionParams(n_ctx=64, n_threads=1)) for _ in range(2)]
        cycle: list[Any] = [model, sessions]
        cycle.append(cycle)
        del model, sessions, cycle
        gc.collect()


def test_memory_report(tiny_path: Path) -> None:
    with Model(tiny_path) as model:
        params = SessionParams(n_ctx=512, n_seq=2, n_ubatch=32)
        plan = model.memory_plan(params)
        with Session(model, params) as session:
            use = session.memory
        assert (plan.pages, plan.rings, plan.weights) == (use.pages, use.rings, use.weights) and use.compute > 0
        assert plan.page_bytes_per_token < plan.full_attention_bytes_per_token
        assert [row.kind for row in model.layers] == ["full", "sparse", "sparse", "full", "sliding", "sparse", "full"]
        assert model.info.arch == "hysparse" and model.info.n_vocab == 320 and not model.info.oracle


def test_load_progress_and_cancel(tiny_path: Path) -> None:
    seen: list[float] = []
    with LLM(tiny_path, n_ctx=64, progress=seen.append):
        pass
    assert seen and seen == sorted(seen) and seen[-1] == 1.0
    with pytest.raises(errors.CancelledError):
        LLM(tiny_path, progress=lambda fraction: False)

    def broken(fraction: float) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        LLM(tiny_path, progress=broken)


def test_bad_arguments(tiny_path: Path, tmp_path: Path) -> None:
    for options, words in [
        ({"n_ctx": -1}, "n_ctx.*-1"),
        ({"n_ubatch": 0}, "n_ubatch.*0"),
        ({"type_k": "q9"}, "type_k.*q9"),
        ({"n_threads": -3}, "threads.*-3"),
        ({"n_ctx": "big"}, "n_ctx.*big"),
        ({"oracle": {"full": [0]}}, "'full'"),
        ({"oracle": {"full_layers": "0"}}, "full_layers"),
        ({"oracle": "yes"}, "oracle.*yes"),
        ({"oracle": {"full_layers": [0], "window": -1}}, "window.*-1"),
    ]:
        with pytest.raises(errors.ArgumentError, match=words):
            LLM(tiny_path, **options)  # type: ignore[arg-type]
    with pytest.raises(errors.FileError, match=r"none\.gguf"):
        LLM(tmp_path / "none.gguf")
    with pytest.raises(errors.ArgumentError, match="NUL"):
        LLM("a\0b")
    with pytest.raises(errors.ArgumentError, match="7"):
        LLM(7)  # type: ignore[arg-type]


def test_oracle_needs_a_list(checkpoints: Callable[[str], Path]) -> None:
    """A stock model without a calibrated list: oracle=True is refused, an explicit list works, and with all blocks it is exact."""
    from gguf_fixtures import tiny_gguf

    path = tiny_gguf(checkpoints, "qwen3")
    with pytest.raises(errors.HysparseError, match="oracle"):
        LLM(path, oracle=True)
    ids = list(range(3, 100))
    options: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "n_threads": 1}
    with LLM(path, **options) as full, LLM(path, oracle={"full_layers": [0], "top_k_tokens": 1024, "block_size": 16}, **options) as oracle:
        assert [row.kind for row in oracle.model.layers] == ["full", "sparse", "sparse", "sparse"] and oracle.model.info.oracle
        assert nmse(oracle.logits(ids), full.logits(ids)) < 1e-9
    with (
        LLM(path, oracle={"full_layers": [0], "top_k_tokens": 16, "block_size": 16, "window": 16}, **options) as narrow,
        LLM(path, **options) as full,
    ):
        assert nmse(narrow.logits(ids), full.logits(ids)) > 1e-6


def test_capture(tiny: LLM) -> None:
    names: dict[str, tuple[int, ...]] = {}

    def keep(name: str, values: np.ndarray[Any, Any]) -> None:
        names[name] = values.shape

    with tiny.session.capture(keep):
        tiny.eval([5, 6, 7])
    assert any(name.startswith("attn_out-") for name in names), sorted(names)
    count = len(names)
    tiny.eval([8])
    assert len(names) == count  # off again

    def broken(name: str, values: np.ndarray[Any, Any]) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), tiny.session.capture(broken):
        tiny.eval([9])
    with pytest.raises(errors.CancelledError), tiny.session.capture(lambda name, values: False):
        tiny.eval([9])
    tiny.eval([9])
    assert tiny.tokens == [5, 6, 7, 8, 9]
    with pytest.raises(errors.BusyError, match="callback"), tiny.session.capture(lambda name, values: tiny.close()):
        tiny.eval([10])  # must not free what it runs on
    assert not tiny.closed
    tiny.eval([10])


def test_a_signal_while_c_runs_is_raised_as_it_is(tiny: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    """Python handles it at the first line of the next callback: it must end the call and come out, not become a traceback on stderr."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(10):
            with pytest.raises(KeyboardInterrupt), tiny.session.capture(lambda name, values: None):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                while True:
                    tiny.session.remove(0)
                    tiny.session.eval([5, 6, 7] * 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert capfd.readouterr().err == ""


def test_logs(tiny: LLM, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """The runtime's messages can go to Python's logging, and back."""
    caplog.set_level("DEBUG", logger="pyhysparse")
    logs_to_logging()
    try:
        tiny.eval(list(range(3, 120)))
        for n in (110, 40, 3):
            tiny.session.rewind(n)
    finally:
        logs_to_stderr()
    messages = [record.getMessage() for record in caplog.records if record.name == "pyhysparse"]
    assert any("rewind" in message for message in messages), messages
    caplog.clear()
    tiny.eval(list(range(3, 120)))
    tiny.session.rewind(2)
    assert not caplog.records and "rewind" not in capfd.readouterr().err
