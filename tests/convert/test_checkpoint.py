"""The checkpoint reader against damaged files, and number formats against PyTorch."""
from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.tiny import make_checkpoint

from pyhysparse.convert import ConvertError, convert
from pyhysparse.convert.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"


def raw_file(path: Path, header: Any, data: bytes = b"", n: int | None = None) -> None:
    """A safetensors file with this header (JSON value or bytes) and, if given, a false header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if n is None else n) + text + data)


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape,
            "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets}


BAD_HEADERS: dict[str, tuple[Any, bytes, int | None, str]] = {
    "length past the end": ({"a": entry()}, b"\0" * 8, 10**6, r"header length: found 1000000, expected at most"),
    "length 2^60": ({}, b"", 2**60, "header length"),
    "not JSON": (b"{nonsense", b"", None, "not valid JSON"),
    "invalid UTF-8": (b"\xff\xfe{}", b"", None, "not valid JSON"),
    "deeply nested": (b"[" * 200000, b"", None, "not valid JSON"),
    "a list": ([], b"", None, "found a JSON list, expected an object"),
    "entry is a number": ({"a": 3}, b"", None, "tensor a: found a JSON int"),
    "unknown dtype": ({"a": entry("F4")}, b"\0" * 8, None, "tensor a: dtype: found 'F4'"),
    "dtype missing": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8, None, "dtype: found None"),
    "negative size": ({"a": entry(shape=(-2,))}, b"\0" * 8, None, r"shape: found \[-2\]"),
    "shape is text": ({"a": entry(shape="2")}, b"\0" * 8, None, "shape: found '2'"),
    "huge size": ({"a": entry(shape=(2**40, 2**40))}, b"\0" * 8, None, "data_offsets: found 8 bytes, expected"),
    "offsets swapped": ({"a": entry(offsets=(8, 0))}, b"\0" * 8, None, r"data_offsets: found \[8, 0\]"),
    "past the data": ({"a": entry(offsets=(8, 16))}, b"\0" * 8, None, "within the 8 bytes"),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, b"\0" * 8, None, "data_offsets"),
    "one offset": ({"a": entry(offsets=(0,))}, b"\0" * 8, None, r"expected \[begin, end\]"),
    "size does not fit": ({"a": entry(shape=(3,))}, b"\0" * 8, None, "found 8 bytes, expected 12 for F32"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12, None, "tensor b: found data that overlaps that of a"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_safetensors_header(tmp_path: Path, case: str) -> None:
    header, data, n, message = BAD_HEADERS[case]
    (tmp_path / "config.json").write_text("{}")
    raw_file(tmp_path / "model.safetensors", header, data, n)
    with pytest.raises(ConvertError, match=message) as e:
        Checkpoint(tmp_path)
    assert "model.safetensors" in str(e.value)


def test_truncation_at_every_eighth_byte_of_the_header(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    for n in [*range(0, end + 8, 8), len(whole) - 1]:
        (tmp_path / "model.safetensors").write_bytes(whole[:n])
        with pytest.raises(ConvertError, match=r"model\.safetensors"):
            Checkpoint(tmp_path)


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, shards=3)
    name, first = "model.norm.weight", "model-00001-of-00003.safetensors"
    original = (tmp_path / INDEX).read_text()
    edit_index(tmp_path, lambda m: m.update({"model.ghost.weight": first}))
    with pytest.raises(ConvertError, match=r"tensor model\.ghost\.weight: found it in no file, expected it in model-00001"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(original)
    edit_index(tmp_path, lambda m: m.pop(name))
    with pytest.raises(ConvertError, match=r"tensor model\.norm\.weight of .* is not in the index"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(original)
    wrong = next(f for f in sorted(set(json.loads(original)["weight_map"].values())) if f != json.loads(original)["weight_map"][name])
    edit_index(tmp_path, lambda m: m.update({name: wrong}))
    with pytest.raises(ConvertError, match=r"tensor model\.norm\.weight: found it in model-\d+-of-00003"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(original)
    edit_index(tmp_path, lambda m: m.update({name: "../../secret.safetensors"}))
    with pytest.raises(ConvertError, match="the name of a file in the same folder"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(original)
    (tmp_path / first).unlink()
    with pytest.raises(ConvertError, match="1 of 3 files are missing, the first is model-00001"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ConvertError, match="2 safetensors files without"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ConvertError, match="weight_map: found None"):
        Checkpoint(tmp_path)


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="not a folder"):
        Checkpoint(tmp_path / "nothing")
    with pytest.raises(ConvertError, match=r"config\.json is missing"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConvertError, match=r"config\.json: found a JSON list, expected an object"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConvertError, match=r"config\.json: not valid JSON"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConvertError, match="no safetensors file found"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ConvertError, match=r"found pytorch_model\.bin, expected safetensors"):
        Checkpoint(tmp_path)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    make_checkpoint(tmp_path)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with pytest.raises(ConvertError, match=r"tensor model\.norm\.weight: dtype: found I32"):
        convert(tmp_path, tmp_path / "out.gguf", dry_run=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_decoding_equals_pytorch(tmp_path: Path, dtype: str) -> None:
    """Every bit pattern of the 8- and 16-bit formats, NaN and infinities among them."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    if kind.itemsize == 1:
        w = torch.arange(256, dtype=torch.uint8).view(kind).reshape(32, 8)
    elif kind.itemsize == 2:
        w = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(kind).reshape(-1, 64)
    else:
        w = torch.randn(40, 8, generator=torch.Generator().manual_seed(1), dtype=kind)
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": w, "v": torch.ones(3, dtype=kind)}, str(tmp_path / "model.safetensors"))
    ckpt = Checkpoint(tmp_path)
    got = np.concatenate([ckpt.rows("w", lo, min(lo + 7, w.shape[0])) for lo in range(0, w.shape[0], 7)])
    assert np.array_equal(got, w.float().numpy(), equal_nan=True)
    assert ckpt.rows("v", 1, 3).shape == (2, 1)
