"""Several sequences, rewind, fork, save and load: whatever came before, logits are those of a fresh evaluation of the same tokens."""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.compare import assert_close
from reference.runtime import Session, opened, to_gguf
from reference.tiny import VOCAB_SIZE

from pyhysparse import errors

Checkpoints = Callable[[str], Path]
# Every cache shape: pages and rings, sliding layers only, unequal head counts, blocks that are no page, a window of one token, MoE.
NAMES = ["dense", "sinks_all", "hybrid_swa", "kv_heads_differ", "block_24", "block_8", "block_10_top_1", "moe_groups", "all_full"]
TOLERANCE = 1e-6


def random_tokens(n: int, seed: int) -> list[int]:
    return list(torch.randint(0, VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


PROMPT, OTHER = random_tokens(200, 5), random_tokens(120, 6)


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Iterator[Path]:
    yield to_gguf(checkpoints(request.param))


def fresh(path: Path, tokens: list[int]) -> torch.Tensor:
    """Logits of every token in a new session, in one ubatch."""
    with opened(path, n_ubatch=512) as session:
        return session.eval(tokens)


def check_continuation(session: Session, held: list[int], more: list[int], path: Path, seq: int = 0) -> None:
    """The sequence holds `held`; appending `more` gives the logits of a fresh evaluation of both."""
    assert session.length(seq) == len(held)
    assert session.tokens(seq) == held
    assert_close(session.eval(more, seq), fresh(path, held + more)[len(held):], TOLERANCE)


def test_interleaved_sequences(path: Path) -> None:
    """Four sequences of different lengths, mixed within calls and within ubatches, each as if it were alone."""
    streams = [PROMPT, OTHER, random_tokens(31, 7), random_tokens(90, 8)]
    done, rows = [0] * 4, [[] for _ in streams]  # type: list[int], list[list[torch.Tensor]]
    rng = random.Random(3)
    with opened(path, n_seq=4) as session:
        while any(done[s] < len(stream) for s, stream in enumerate(streams)):
            tokens: list[int] = []
            seqs: list[int] = []
            for _ in range(rng.randint(1, 5)):  # runs of random length of random sequences, some sequences twice
                s = rng.randrange(4)
                run = streams[s][done[s]:done[s] + rng.choice([1, 1, 2, 5, 20])]
                tokens, seqs, done[s] = tokens + run, seqs + [s] * len(run), done[s] + len(run)
            if tokens:
                for s, row in zip(seqs, session.eval(tokens, seqs), strict=True):
                    rows[s].append(row)
        for s, stream in enumerate(streams):
            assert session.tokens(s) == stream
            assert_close(torch.stack(rows[s]), fresh(path, stream), TOLERANCE, f"sequence {s}")


@pytest.mark.parametrize("keep", [199, 190, 170, 161, 160, 100, 17, 1, 0])
def test_rewind(path: Path, keep: int) -> None:
    """To inside the ring and far beyond it; then the same tokens again, and then others."""
    with opened(path) as session:
        session.eval(PROMPT)
        session.rewind(keep)
        check_continuation(session, PROMPT[:keep], PROMPT[keep:], path)
        session.rewind(keep)
        check_continuation(session, PROMPT[:keep], OTHER[:50], path)


def test_rewind_again_and_again(path: Path) -> None:
    """Random rewinds and continuations, with calls of random length, single tokens among them."""
    rng, held = random.Random(11), []  # type: random.Random, list[int]
    with opened(path) as session:
        for round_ in range(12):
            more = random_tokens(rng.choice([1, 2, 16, 60]), 100 + round_)
            check_continuation(session, held, more, path)
            held = held + more
            keep = rng.randint(0, len(held))
            session.rewind(keep)
            held = held[:keep]


@pytest.mark.parametrize("n_checkpoints", [0, 1, 2])
def test_rewind_with_few_checkpoints(path: Path, n_checkpoints: int) -> None:
    """Without a saved ring at hand the rings are recomputed."""
    with opened(path, n_checkpoints=n_checkpoints) as session:
        session.eval(PROMPT[:64])
        session.checkpoint()
        session.eval(PROMPT[64:])
        for keep in (150, 70, 64, 63, 5):
            session.rewind(keep)
            check_continuation(session, PROMPT[:keep], OTHER[:30], path)
            session.rewind(keep)


def test_rewind_to_the_present_changes_nothing(path: Path) -> None:
    with opened(path) as session:
        session.eval(PROMPT[:77])
        session.rewind(77)
        check_continuation(session, PROMPT[:77], OTHER[:20], path)
        with pytest.raises(errors.ArgumentError):
            session.rewind(98)
        with pytest.raises(errors.ArgumentError):
            session.rewind(-1)
        check_continuation(session, PROMPT[:77] + OTHER[:20], OTHER[20:40], path)


def test_fork(path: Path) -> None:
    """Both branches go on by themselves, whoever writes first, and rewinding one below the fork leaves the other alone."""
    with opened(path, n_seq=3) as session:
        session.eval(PROMPT[:101])
        session.fork(0, 1)
        session.fork(1, 2)
        check_continuation(session, PROMPT[:101], OTHER[:40], path, seq=1)
        check_continuation(session, PROMPT[:101], PROMPT[101:150], path, seq=0)
        session.rewind(50, seq=0)
        check_continuation(session, PROMPT[:50], OTHER[50:80], path, seq=0)
        check_continuation(session, PROMPT[:101] + OTHER[:40], OTHER[40:60], path, seq=1)
        check_continuation(session, PROMPT[:101], OTHER[60:70], path, seq=2)
        session.rewind(20, seq=2)
        check_continuation(session, PROMPT[:20], OTHER[:9], path, seq=2)


def test_pages_are_shared_and_come_back(path: Path) -> None:
    with opened(path, n_seq=3) as session:
        empty = session.free_pages()
        session.eval(PROMPT)
        one = session.free_pages()
        assert one < empty
        session.fork(0, 1)
        assert session.free_pages() == one, "a fork takes no pages"
        session.eval(OTHER[:1], 1)
        assert session.free_pages() >= one - 1, "only the last page is copied"
        session.remove(0)
        check_continuation(session, PROMPT + OTHER[:1], OTHER[1:20], path, seq=1)
        session.remove(1)
        assert session.free_pages() == empty
        assert session.length(0) == session.length(1) == 0
        check_continuation(session, [], OTHER, path, seq=0)


def test_fork_over_a_used_sequence(path: Path) -> None:
    with opened(path, n_seq=2) as session:
        session.eval(OTHER, 1)
        session.eval(PROMPT[:60], 0)
        free = session.free_pages()
        session.fork(0, 1)
        assert session.free_pages() >= free
        check_continuation(session, PROMPT[:60], OTHER[:30], path, seq=1)


@pytest.mark.parametrize("length", [1, 16, 130])
def test_save_and_load(path: Path, length: int, tmp_path: Path) -> None:
    """Into another session of the same model, into a used sequence of it; rewinding works there too."""
    file = tmp_path / "sequence.session"
    with opened(path, n_seq=2) as session:
        session.eval(OTHER, 0)
        session.eval(PROMPT[:length], 1)
        session.save(file, 1)
        check_continuation(session, PROMPT[:length], OTHER[:5], path, seq=1)
    with opened(path, n_seq=2) as session:
        session.eval(OTHER[:40], 1)
        session.load(file, 1)
        check_continuation(session, PROMPT[:length], PROMPT[length:150], path, seq=1)
        session.rewind(length // 2, 1)
        check_continuation(session, PROMPT[:length // 2], OTHER[:20], path, seq=1)
    assert [f.name for f in tmp_path.iterdir()] == ["sequence.session"], "temporary files are left behind"


def test_load_refuses_another_models_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    file = tmp_path / "sequence.session"
    with opened(to_gguf(checkpoints("dense"))) as session:
        session.eval(PROMPT[:40])
        session.save(file)
    with opened(to_gguf(checkpoints("mha"))) as session:
        session.eval(OTHER[:10])
        with pytest.raises(errors.StateError):
            session.load(file)
        assert session.length() == 0  # "on failure the sequence is empty"
    with opened(to_gguf(checkpoints("dense")), cache="f16") as session, pytest.raises(errors.StateError):
        session.load(file)


def test_load_of_a_missing_file(path: Path, tmp_path: Path) -> None:
    with opened(path) as session:
        session.eval(PROMPT[:40])
        with pytest.raises(errors.FileError, match="cannot be opened"):
            session.load(tmp_path / "none")
        assert session.length() == 0  # "on failure the sequence is empty"


def test_load_of_more_tokens_than_the_context_holds(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "sequence.session"
    with opened(path) as session:
        session.eval(PROMPT[:130])
        session.save(file)
    with opened(path, n_ctx=64) as session:
        with pytest.raises(errors.ContextFullError, match="holds 130 tokens, more than n_ctx 64"):
            session.load(file)
        check_continuation(session, [], PROMPT[:20], path)
    with opened(path, n_ctx=144, n_seq=2) as session:  # the context would do, but the other sequence has most of it
        session.eval(OTHER[:100], 0)
        with pytest.raises(errors.ContextFullError, match="sequence 1"):
            session.load(file, 1)
        assert session.length(1) == 0
        check_continuation(session, OTHER[:100], OTHER[100:110], path)


@pytest.mark.parametrize("damage", ["short", "empty", "magic", "long"])
def test_load_refuses_a_damaged_file(damage: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    file, path = tmp_path / "sequence.session", to_gguf(checkpoints("dense"))
    with opened(path) as session:
        session.eval(PROMPT[:40])
        session.save(file)
        content = file.read_bytes()
        file.write_bytes({"short": content[:-9], "empty": b"", "magic": b"XXXX" + content[4:], "long": content + b"1234"}[damage])
        with pytest.raises((errors.FormatError, errors.StateError)):
            session.load(file)
        check_continuation(session, [], PROMPT[:20], path)


def test_full_context(path: Path) -> None:
    """Running out of pages is an error that leaves whole ubatches appended, and rewinding makes room again."""
    with opened(path, n_ctx=128) as session:
        capacity = 0
        with pytest.raises(errors.ContextFullError):
            session.eval(PROMPT[:150])
        capacity = session.length()
        assert capacity <= 150
        held = PROMPT[:capacity]
        session.rewind(min(60, capacity))
        check_continuation(session, held[:60], OTHER[:30], path)


class StopAt:
    """A capture function that cancels the evaluation at the n-th node it sees."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, name: str, values: object) -> bool:
        self.left -= 1
        return self.left > 0


@pytest.mark.parametrize("node", [1, 5, 40, 150, 222])
def test_cancelled_evaluation(path: Path, node: int) -> None:
    """A call stopped at any node leaves whole ubatches, from which appending and rewinding go on as if nothing had happened."""
    with opened(path) as session:
        session.eval(PROMPT[:70])
        session.capture(StopAt(node))
        with pytest.raises(errors.CancelledError):
            session.eval(PROMPT[70:], want=[False] * 130)
        session.capture(None)
        length = session.length()
        assert 70 <= length < 200
        check_continuation(session, PROMPT[:length], PROMPT[length:], path)
        session.rewind(60)
        check_continuation(session, PROMPT[:60], OTHER[:30], path)
        session.capture(StopAt(node))
        with pytest.raises(errors.CancelledError):
            session.eval(PROMPT)
        session.capture(None)
        session.rewind(80)
        check_continuation(session, PROMPT[:60] + OTHER[:20], OTHER[20:40], path)


class Shadow:
    """A session driven at random beside a plain list of what each sequence must hold."""

    def __init__(self, session: Session, judge: Session, rng: random.Random, folder: Path) -> None:
        self.session, self.judge, self.rng, self.folder = session, judge, rng, folder
        self.held: list[list[int]] = [[], [], []]
        self.saved: dict[Path, list[int]] = {}

    def check(self, seq: int, rows: torch.Tensor) -> None:
        """`rows` are the logits of the last tokens that the sequence holds."""
        self.judge.remove()
        expected = self.judge.eval(self.held[seq])[-len(rows):]
        assert_close(rows, expected, TOLERANCE, f"sequence {seq} of {len(self.held[seq])} tokens")

    def append(self) -> None:
        """To several sequences in one call; what a failed call has appended are whole ubatches from its front."""
        tokens: list[int] = []
        seqs: list[int] = []
        for _ in range(self.rng.randint(1, 3)):
            run = random_tokens(self.rng.choice([1, 1, 3, 17, 40]), self.rng.randrange(10**6))
            tokens, seqs = tokens + run, seqs + [self.rng.randrange(3)] * len(run)
        before = [len(h) for h in self.held]
        self.session.capture(StopAt(self.rng.randint(1, 300)) if self.rng.random() < 0.2 else None)
        try:
            logits = self.session.eval(tokens, seqs)
        except (errors.ContextFullError, errors.CancelledError):
            done = sum(self.session.length(s) - before[s] for s in range(3))
            assert 0 <= done < len(tokens)
            tokens, seqs, logits = tokens[:done], seqs[:done], torch.zeros(0)
        self.session.capture(None)
        for token, s in zip(tokens, seqs, strict=True):
            self.held[s].append(token)
        for s in range(3):
            mine = [i for i, q in enumerate(seqs) if q == s]
            if mine and len(logits):
                self.check(s, logits[torch.tensor(mine)])

    def step(self) -> None:
        """One random operation."""
        a, b = self.rng.sample(range(3), 2)
        kind = self.rng.choice(["append"] * 4 + ["rewind", "rewind", "rewind a little", "fork", "remove", "checkpoint", "save", "load"])
        n = len(self.held[a])
        if kind == "append":
            self.append()
        elif kind.startswith("rewind"):
            keep = max(0, n - self.rng.randint(0, 8)) if kind == "rewind a little" else self.rng.randint(0, n)
            try:
                self.session.rewind(keep, a)
            except errors.ContextFullError:  # recomputing rings writes pages; those shared with a fork are copied first
                assert self.session.length(a) < keep
            self.held[a] = self.held[a][:min(keep, self.session.length(a))]
        elif kind == "fork":
            self.session.fork(a, b)
            self.held[b] = list(self.held[a])
        elif kind == "remove":
            self.session.remove(a)
            self.held[a] = []
        elif kind == "checkpoint":
            self.session.checkpoint(a)
        elif kind == "save":
            file = self.folder / f"{len(self.saved) % 3}.session"
            self.session.save(file, a)
            self.saved[file] = list(self.held[a])
        elif self.saved:
            file = self.rng.choice(sorted(self.saved))
            try:
                self.session.load(file, a)
                self.held[a] = list(self.saved[file])
            except errors.ContextFullError:
                self.held[a] = []
        for s in range(3):
            assert self.session.tokens(s) == self.held[s]


@pytest.mark.parametrize("seed", range(4))
def test_random_operations(path: Path, seed: int, tmp_path: Path) -> None:
    """A context too small for three sequences, few checkpoints, odd ubatches: nothing but right logits and whole errors."""
    rng = random.Random(seed)
    options: dict[str, Any] = {"n_ctx": rng.choice([192, 320, 1024]), "n_ubatch": rng.choice([1, 7, 16, 50]),
                               "n_checkpoints": rng.choice([0, 1, 3, 32])}
    with opened(path, n_ubatch=512) as judge, opened(path, n_seq=3, **options) as session:
        pages = session.free_pages()
        shadow = Shadow(session, judge, rng, tmp_path)
        for _ in range(60):
            shadow.step()
        for s in range(3):
            session.remove(s)
        assert session.free_pages() == pages, "pages leaked"
