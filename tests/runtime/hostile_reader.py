"""Files that the GGUF reader must refuse: header, keys, tensor table, data and split files (FEATURES.md 5.3, and the CVEs of 5.2)."""

from __future__ import annotations

import struct
from typing import Any

from make_hostile import (
    ARR,
    BOOL,
    F64,
    GGML_F32,
    GGML_Q4_0,
    GGUF,
    I16,
    I32,
    STR,
    U8,
    U16,
    U32,
    U64,
    Case,
    array,
    fmt,
    pair,
    small,
)


def header_cases() -> list[Case]:
    def head(**wrong: Any) -> GGUF:
        g = small()
        for k, v in wrong.items():
            setattr(g, k, v)
        return g

    old = " (an old file"
    return [
        fmt("empty-file", b"", "empty", "expected a GGUF"),
        fmt("magic", head(magic=b"GGML"), "magic", "GGML", "expected 'GGUF'"),
        fmt("magic-binary", head(magic=b"\x00\xff\x01\n"), "magic", r"\x00\xff\x01\x0a", "expected 'GGUF'"),
        fmt("version-0", head(version=0), "version", " 0", "expected 3"),
        fmt("version-1", head(version=1), "version", " 1" + old, "expected 3"),
        fmt("version-2", head(version=2), "version", " 2" + old, "expected 3"),
        fmt("version-4", head(version=4), "version", " 4", "expected 3"),
        fmt("version-swapped", head(version=0x03000000), "version", "50331648", "big-endian", "expected 3"),
        *(fmt(f"n-tensors-{name}", head(n_tensors=n), "tensor count", str(n & (2**64 - 1)), "expected at most") for name, n in COUNTS),
        *(fmt(f"n-kv-{name}", head(n_kv=n), "key count", str(n & (2**64 - 1)), "expected at most") for name, n in COUNTS),
        fmt("n-kv-one-more", head(n_kv=3), "name of tensor 0", "expected 1 to 63"),
        fmt("n-tensors-one-more", head(n_tensors=3), "name of tensor 2", "length 0", "expected 1"),
    ]


COUNTS = [("2^32", 2**32), ("2^60", 2**60), ("minus-1", -1)]


def kv_cases() -> list[Case]:
    def extra(*pairs: bytes) -> GGUF:
        g = small()
        g.extra_kv = list(pairs)
        return g

    one = struct.pack("<I", 1)
    cases = [
        fmt("key-empty", extra(pair(b"", U32, one)), "key 2", "length 0", "expected 1 to 65535"),
        fmt("key-2^60", extra(struct.pack("<Q", 2**60) + b"k" + struct.pack("<II", U32, 1)), "key 2", str(2**60), "expected 1 to 65535"),
        fmt("key-too-long", extra(pair(b"k" * 65536, U32, one)), "key 2", "65536", "expected 1 to 65535"),
        fmt("key-repeated", extra(pair(b"test.value", U32, one)), "'test.value'", "repeats", "expected unique"),
        fmt("key-nul", extra(pair(b"a\0b", U32, one)), "key 2", r"a\x00b", "expected UTF-8 without NUL"),
        fmt("key-not-utf8", extra(pair(b"a\xc3(", U32, one)), "key 2", "0xc3", "expected UTF-8"),
        fmt("key-surrogate", extra(pair(b"\xed\xa0\x80", U32, one)), "key 2", "0xed", "expected UTF-8"),
        fmt("type-13", extra(pair(b"k", 13, one)), "'k'", "value type 13", "expected 0 to 12"),
        fmt("type-2^32-1", extra(pair(b"k", 2**32 - 1, one)), "'k'", "value type 4294967295", "expected 0 to 12"),
        fmt("array-of-arrays", extra(pair(b"k", ARR, array(ARR, [], 1) + array(U8, [1]))), "'k'", "type 9", "arrays of arrays"),
        fmt("array-of-unknown", extra(pair(b"k", ARR, array(77, [], 2**40))), "'k'", "type 77", "expected 0 to 12"),
        fmt("array-of-unknown-empty", extra(pair(b"k", ARR, array(77, [], 0))), "'k'", "type 77", "expected 0 to 12"),
        fmt("array-wraps", extra(pair(b"k", ARR, array(F64, [], 2**61))), "'k'", "array length", str(2**61), "expected"),
        fmt("array-wraps-to-small", extra(pair(b"k", ARR, array(U32, [1, 2], 2**62 + 2))), "'k'", "length", str(2**62 + 2), "expected"),
        fmt("array-past-end", extra(pair(b"k", ARR, array(U8, [1], 2**20))), "'k'", "array length", str(2**20), "rest of the file"),
        fmt("array-limit", extra(pair(b"k", ARR, array(U8, [1], 2**31))), "'k'", "array length", str(2**31), "at most 2^30"),
        fmt("strings-past-end", extra(pair(b"k", ARR, array(STR, ["a"], 2**20))), "'k'", "array length", str(2**20), "rest of the file"),
        fmt("string-past-end", extra(pair(b"k", STR, struct.pack("<Q", 2**20))), "'k'", "string length", str(2**20), "rest of the file"),
        fmt("string-2^64-1", extra(pair(b"k", STR, struct.pack("<Q", 2**64 - 1))), "'k'", "length", str(2**64 - 1), "at most 2^30"),
        fmt("string-in-array", extra(pair(b"k", ARR, struct.pack("<IQQ", STR, 1, 2**63))), "'k'", "length", str(2**63), "at most 2^30"),
        fmt("bool-2", extra(pair(b"k", BOOL, b"\x02")), "'k'", "bool byte 2", "expected 0 or 1"),
        fmt("bool-array-255", extra(pair(b"k", ARR, struct.pack("<IQ", BOOL, 2) + b"\x01\xff")), "'k'", "bool byte 255", "expected 0 or 1"),
    ]
    for value in (0, 1, 3, 48, 2**31 + 1):
        g = small().set("general.alignment", U32, value)
        cases.append(fmt(f"alignment-{value}", g, "general.alignment", str(value), "expected a power of two"))
    cases.append(fmt("alignment-huge", small().set("general.alignment", U32, 2**31), "tensor 'a'", str(2**31), "expected an end within"))
    cases.append(fmt("alignment-u64", small().set("general.alignment", U64, 32), "general.alignment", "u64", "expected u32"))
    cases.append(fmt("alignment-string", small().set("general.alignment", STR, "32"), "general.alignment", "string", "expected u32"))
    return cases


def tensor_cases() -> list[Case]:
    def one(ne: list[int], kind: int = GGML_F32, data: bytes = bytes(64), name: str | bytes = "t", **wrong: Any) -> GGUF:
        return GGUF().set("k", U32, 1).tensor(name, ne, kind, data, **wrong)

    def two(**wrong: Any) -> GGUF:
        return one([16]).tensor("u", [16], GGML_F32, bytes(64), **wrong)

    def dims(n: int) -> Case:
        return fmt(f"n-dims-{n}", one([1] * min(n, 5), n_dims=n), "tensor 't'", f"{n} dimensions", "expected 1 to 4")

    long_name = GGUF(n_tensors=1, extra_kv=[struct.pack("<Q", 2**63) + bytes(64)], n_kv=0)
    wrap = "expected less than 2^63"
    removed, unknown = (4, 5, 31, 33, 36), (43, 2**31 - 1, 2**31, 2**32 - 1)
    return [
        fmt("name-64", one([16], name="n" * 64), "tensor 0", "length 64", "expected 1 to 63"),
        fmt("name-2^63", long_name, "tensor 0", str(2**63), "expected 1 to 63"),
        fmt("name-empty", one([16], name=""), "tensor 0", "length 0", "expected 1 to 63"),
        fmt("name-nul", one([16], name=b"a\0b"), "tensor 0", r"a\x00b", "expected UTF-8 without NUL"),
        fmt("name-repeated", one([16]).tensor("t", [16]), "tensor 't'", "repeats", "expected unique"),
        dims(0), dims(5), dims(2**32 - 1),
        fmt("dim-0", one([0]), "tensor 't'", "dimension 0 is 0", "expected 1"),
        fmt("dim-1-0", one([4, 0]), "tensor 't'", "dimension 1 is 0", "expected 1"),
        fmt("dim-negative", one([-4]), "tensor 't'", "dimension 0 is -4", "expected 1"),
        fmt("dim-int64-min", one([4, -(2**63)]), "tensor 't'", f"dimension 1 is {-(2**63)}", "expected 1"),
        fmt("product-2^64", one([2**32, 2**32]), "tensor 't'", str(2**32), wrap),
        fmt("product-wraps-to-small", one([2**32, 2**31, 2, 1]), "tensor 't'", str(2**31), wrap),
        fmt("product-int64max", one([2**63 - 1, 2]), "tensor 't'", str(2**63 - 1), wrap),
        fmt("bytes-wrap", one([2**62]), "tensor 't'", str(2**62), wrap),
        fmt("dim-2^42+1", one([2**42 + 1, 2**20]), "tensor 't'", str(2**42 + 1), wrap),
        fmt("row-not-blocks", one([33], GGML_Q4_0), "tensor 't'", "rows of 33", "multiple of 32"),
        *(fmt(f"type-removed-{n}", one([32], n), "tensor 't'", f"type {n} ", "no longer", "expected") for n in removed),
        *(fmt(f"type-unknown-{n}", one([32], n), "tensor 't'", f"type {n} ", "unknown", "expected") for n in unknown),
        fmt("offset-unaligned", one([16], offset=4), "tensor 't'", "offset 4", "multiple of the alignment 32"),
        fmt("offset-past-end", one([16], offset=2**20), "tensor 't'", str(2**20), "expected an end within"),
        fmt("offset-wraps", one([16], offset=2**64 - 32), "tensor 't'", str(2**64 - 32), "expected an end within"),
        fmt("size-past-end", one([2**20]), "tensor 't'", str(2**22), "expected an end within"),
        fmt("offset+size-wraps", one([2**60], offset=2**63), "tensor 't'", str(2**63), "expected an end within"),
        fmt("overlap", two(offset=32), "tensor 'u'", "offset", "inside tensor 't'", "expected"),
        fmt("overlap-same", two(offset=0), "inside tensor", "expected"),
        fmt("data-cut", one([16]).build()[:-1], "tensor 't'", "64 bytes", "expected an end within"),
        fmt("data-missing", one([16]).build()[:-64], "tensor 't'", "64 bytes", "expected an end within"),
    ]


def shard(no: int, count: int, total: int, names: list[str], model: str = "m") -> GGUF:
    g = GGUF().set("split.no", U16, no).set("split.count", U16, count).set("split.tensors.count", I32, total)
    g.set("general.name", STR, model)
    for name in names:
        g.tensor(name, [16])
    return g


def shard_name(no: int, count: int) -> str:
    return f"m-{no + 1:05d}-of-{count:05d}.gguf"


def split(name: str, shards: list[GGUF | None], *words: str, opened: int = 0, error: str = "FormatError") -> Case:
    files = {shard_name(i, len(shards)): g.build() for i, g in enumerate(shards) if g}
    return Case(name, files, error, words, shard_name(opened, len(shards)))


def split_cases() -> list[Case]:
    def good(i: int, no: int | None = None, count: int = 3, total: int = 3, names: list[str] | None = None, model: str = "m") -> GGUF:
        return shard(i if no is None else no, count, total, [f"t{i}"] if names is None else names, model)

    text_count, negative = good(0).set("split.count", STR, "3"), good(0).set("split.count", I16, -3)
    renamed = Case("shard-renamed", {"model.gguf": good(1).build()}, "FormatError", ("split.no", " 1", "-00002-of-00003.gguf"))
    return [
        split("shard-missing", [good(0), None, good(2)], "00002-of-00003", "file 2 of 3", error="FileError"),
        split("shard-missing-first", [None, good(1), good(2)], "00001-of-00003", "file 1 of 3", opened=2, error="FileError"),
        split("shard-number", [good(0), good(1, no=2), good(2)], "split.no", " 2", "expected 1"),
        split("shard-number-opened", [good(0), good(1, no=2), good(2)], "split.no", " 2", "expect a file name", opened=1),
        split("shard-number-past", [good(0, no=3), good(1), good(2)], "split.no", " 3", "expected 0 to"),
        split("shard-count", [good(0), good(1, count=4), good(2)], "split.count", " 4", "expected 3"),
        split("shard-count-past", [good(0, count=4), good(1), good(2)], "split.count", " 4", "-00001-of-00004.gguf"),
        split("shard-tensors", [good(0), good(1, total=4), good(2)], "split.tensors.count", " 4", "expected 3"),
        split("shard-tensor-lost", [good(0), good(1, names=[]), good(2)], "split.tensors.count", " 3", "found 2"),
        split("shard-tensor-twice", [good(0), good(1, names=["t0"]), good(2)], "tensor 't0'", "repeats", "00001-of", "expected unique"),
        split("shard-two-models", [good(0), good(1, model="other"), good(2)], "general.name", "differs", "expected equal"),
        split("shard-cut", [good(0), GGUF(magic=b"GG"), good(2)], "00002-of-00003", "magic", "expected 'GGUF'"),
        split("shard-count-string", [text_count, good(1), good(2)], "split.count", "string", "expected an integer"),
        split("shard-count-negative", [negative, good(1), good(2)], "split.count", "negative", "expected 0 to"),
        split("shard-no-without-count", [shard(1, 1, 1, ["t"])], "split.no", " 1", "expected 0"),
        renamed,
    ]  # fmt: skip


def reader_cases() -> list[Case]:
    """Everything that the GGUF reader itself must refuse."""
    return [*header_cases(), *kv_cases(), *tensor_cases(), *split_cases()]
