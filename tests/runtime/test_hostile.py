"""Hostile files end in an exception that names the place, the value found and the value expected: never in a crash, never silently."""

from __future__ import annotations

from pathlib import Path

import hostile_model
import hostile_reader
import make_hostile
import pytest
from make_hostile import Case, small, tiny_model

import pyhysparse
from pyhysparse import errors
from pyhysparse.gguf import GGUFFile
from pyhysparse.model import Model
from pyhysparse.tokenizer import Tokenizer

READER, MODEL, TOKENIZER = hostile_reader.reader_cases(), hostile_model.model_cases(), hostile_model.tokenizer_cases()


def write(case: Case, folder: Path) -> Path:
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    return folder / case.open


def check_message(caught: BaseException, case: Case) -> None:
    missing = [word for word in case.words if word not in str(caught)]
    assert not missing, f"{caught!s} lacks {missing}"


def test_cases_have_names_of_their_own() -> None:
    for cases in (READER, MODEL, TOKENIZER):
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("use_mmap", [True, False], ids=["mmap", "read"])
@pytest.mark.parametrize("case", READER, ids=lambda c: c.name)
def test_reader_refuses(case: Case, use_mmap: bool, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    with pytest.raises(errors.HysparseError) as caught:
        GGUFFile(path, use_mmap=use_mmap)
    assert type(caught.value) is getattr(errors, case.error)
    assert Path(case.open).stem.split("-")[0] in str(caught.value)  # the file
    check_message(caught.value, case)


def test_reader_refuses_every_truncation(tmp_path: Path) -> None:
    whole, path = small().build(), tmp_path / "cut.gguf"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(errors.FormatError, match=r"cut\.gguf"):
            GGUFFile(path)
    path.write_bytes(whole)
    assert [t.name for t in GGUFFile(path).tensors] == ["a", "b"]


@pytest.mark.parametrize("at", range(24))
def test_reader_survives_any_header_byte(at: int, tmp_path: Path) -> None:
    """Each value of each header byte: either the file still says the same, or it is refused."""
    whole, path = bytearray(small().build()), tmp_path / "byte.gguf"
    original = whole[at]
    for value in range(256):
        if value == original:
            continue
        whole[at] = value
        path.write_bytes(bytes(whole))
        # Counts below the true ones leave bytes over that nobody reads: the shorter table is what the file then says.
        try:
            file = GGUFFile(path)
        except errors.FormatError:
            continue
        assert 8 <= at < 24 and value < original, (at, value)
        file.close()


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_paths_that_are_no_files(what: str, tmp_path: Path) -> None:
    path = tmp_path if what == "folder" else tmp_path / "absent.gguf"
    with pytest.raises(errors.FileError, match=path.name):
        GGUFFile(path)


@pytest.mark.parametrize("use_mmap", [True, False], ids=["mmap", "read"])
def test_valid_files_open(use_mmap: bool, tmp_path: Path) -> None:
    """The base of the hostile cases is fine, so each is refused for its one fault."""
    path = tmp_path / "fine.gguf"
    path.write_bytes(small().build())
    file = GGUFFile(path, use_mmap=use_mmap)
    assert dict(file.metadata) == {"general.architecture": "hysparse", "test.value": 7}
    assert [(t.name, t.type, t.shape, t.size) for t in file.tensors] == [("a", "q4_0", (32, 2), 36), ("b", "f32", (4,), 16)]


@pytest.mark.parametrize("opened", range(3))
def test_any_shard_opens_a_split_model(opened: int, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / hostile_reader.shard_name(i, 3)).write_bytes(hostile_reader.shard(i, 3, 3, [f"t{i}"]).build())
    file = GGUFFile(tmp_path / hostile_reader.shard_name(opened, 3))
    assert [(t.name, t.file) for t in file.tensors] == [("t0", 0), ("t1", 1), ("t2", 2)]
    assert file.metadata["split.no"] == 0
    assert file.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_every_value_type_reads_back(tmp_path: Path) -> None:
    g, path = small(), tmp_path / "types.gguf"
    low: dict[int, float] = {make_hostile.U8: 255, make_hostile.I8: -128, make_hostile.U16: 65535, make_hostile.I16: -32768}
    low |= {make_hostile.U32: 2**32 - 1}
    low |= {make_hostile.I32: -(2**31), make_hostile.U64: 2**64 - 1, make_hostile.I64: -(2**63), make_hostile.BOOL: True}
    low |= {make_hostile.F32: 0.5, make_hostile.F64: -1e300}
    for kind, value in low.items():
        g.set(f"one.{kind}", kind, value).set_array(f"many.{kind}", kind, [value, 0, value])
    g.set("one.s", make_hostile.STR, "é\0x").set_array("many.s", make_hostile.STR, ["", "ab", "é"])
    path.write_bytes(g.build())
    found = GGUFFile(path).metadata
    for kind, value in low.items():
        assert found[f"one.{kind}"] == value
        assert found[f"many.{kind}"] == [value, 0, value]
    assert found["one.s"] == "é\0x"
    assert found["many.s"] == ["", "ab", "é"]


# --- models -----------------------------------------------------------------------------------------------------------------------------


ARCHES = ["hysparse", "llama", "qwen2", "qwen3", "mimo2", "moe"]


@pytest.mark.parametrize("arch", ARCHES)
def test_tiny_models_run(arch: str, tmp_path: Path) -> None:
    """The base of the model cases is fine: each is refused for its one fault."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_model("hysparse" if arch == "moe" else arch, moe=arch == "moe").build())
    with Model(path, check_tensors=True) as model:
        assert model.info.n_vocab == 258
        assert model.info.n_expert == (4 if arch == "moe" else 0)
    with pyhysparse.LLM(path) as llm:
        assert "".join(llm.generate("hello", max_tokens=4)) is not None


@pytest.mark.parametrize("case", MODEL, ids=lambda c: c.name)
def test_model_refuses(case: Case, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    with pytest.raises(errors.HysparseError) as caught:
        Model(path)
    assert type(caught.value) is getattr(errors, case.error)
    check_message(caught.value, case)


@pytest.mark.parametrize("case", TOKENIZER, ids=lambda c: c.name)
def test_tokenizer_refuses(case: Case, tmp_path: Path) -> None:
    with pytest.raises(errors.HysparseError) as caught:
        Tokenizer.from_metadata(GGUFFile(write(case, tmp_path)).metadata, 258)
    assert type(caught.value) is getattr(errors, case.error)
    check_message(caught.value, case)


@pytest.mark.parametrize("case", TOKENIZER, ids=lambda c: c.name)
def test_bad_tokenizer_reaches_the_user_of_an_llm(case: Case, tmp_path: Path) -> None:
    """At the latest where text becomes tokens (token-level use of the model needs no tokenizer)."""
    with pytest.raises(errors.HysparseError, match="tokenizer"):
        next(iter(pyhysparse.LLM(write(case, tmp_path)).generate("a", max_tokens=1)))


def test_odd_token_texts_are_harmless(tmp_path: Path) -> None:
    """`<0x-1>` broke readers that parse byte tokens; to byte-level BPE it is text. Unread keys (scores) may have any length."""
    g, path = tiny_model(), tmp_path / "odd.gguf"
    tokens = [f"<0x{i - 1:X}>" for i in range(258)]
    g.set_array("tokenizer.ggml.tokens", make_hostile.STR, tokens).set_array("tokenizer.ggml.merges", make_hostile.STR, [])
    g.set_array("tokenizer.ggml.token_type", make_hostile.I32, [6] * 258)
    g.set_array("tokenizer.ggml.scores", make_hostile.F32, [0.0])
    path.write_bytes(g.build())
    tokenizer = Tokenizer.from_metadata(GGUFFile(path).metadata, 258)
    assert tokens[0] == "<0x-1>"
    assert isinstance(tokenizer.token_bytes(0), bytes)
    assert isinstance(tokenizer.decode(range(258)), str)


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "output_norm.weight", "blk.1.attn_gate_swa.weight", "blk.1.attn_sinks.weight"])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000, 0xFF800000], ids=["nan", "inf", "minus-inf"])
def test_check_tensors_finds_values_that_are_not_finite(name: str, bits: int, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    path.write_bytes(hostile_model.nan_weights(name, bits))
    with pytest.raises(errors.ModelError, match=name):
        Model(path, check_tensors=True)


def test_model_name_of_any_bytes(tmp_path: Path) -> None:
    """general.name is for display: too long, cut inside a character or not UTF-8, it must not stop the load."""
    path = tmp_path / "name.gguf"
    for name in (b"\xff\xfe", "é".encode() * 200, b"a\0b", b""):
        path.write_bytes(tiny_model().set("general.name", make_hostile.STR, name).build())
        with Model(path) as model:
            assert model.info.n_layer == 4
            assert isinstance(model.info.name, str)
