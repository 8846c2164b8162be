"""The tokenizer against llama.cpp's and against `tokenizers`, streaming, and tokenizer data that is wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from pyhysparse.errors import TokenizerError
from pyhysparse.gguf import GGUFFile
from pyhysparse.pretokenizers import KINDS
from pyhysparse.tokenizer import Tokenizer, byte_decoder

TEXTS = [
    "Hello world", "  two  spaces   three", "tabs\t\tand\n\nnewlines\r\n", "123456 12.5e10 1,000", "don't can't I'LL we'Ve", "日本語のテキスト。漢字",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 ok", "naïve café ñ Ü", "\u00a0nbsp\u3000ideographic", "<|im_start|>user\nhi<|im_end|>\n", "   \n  \n   x", "العربية עברית",
    "²³½ ٣٤ Ⅷ", "a" * 300, "x = {'a': [1,2,3]}\n    return x\n", " ", "\n", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\x00\x01 control", "🤷🏽‍♀️!!!...???", "HTTPServer camelCase ALLCAPS",
]  # fmt: skip


def random_texts(n: int) -> list[str]:
    rng = random.Random(7)
    return ["".join(rng.choice("aZq 0 9\n\t'-.,!é日😀\u0301\u200d<|>_\r") for _ in range(rng.randint(1, 50))) for _ in range(n)]


@pytest.fixture(scope="module")
def metadata(demo_path: Path) -> dict[str, Any]:
    with GGUFFile(demo_path) as file:
        return dict(file.metadata)


@pytest.fixture(scope="module")
def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_metadata(metadata, 49152)


@pytest.fixture(scope="module")
def llama_vocab(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]) -> Callable[[str], Any]:
    """llama.cpp's tokenizer over the demo's vocabulary, with another `tokenizer.ggml.pre`."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from gguf import GGUFWriter

    def load(pre: str) -> Any:
        path = tmp_path_factory.mktemp("vocab") / f"{pre}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(metadata["tokenizer.ggml.tokens"])
        writer.add_token_types(metadata["tokenizer.ggml.token_type"])
        writer.add_token_merges(metadata["tokenizer.ggml.merges"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    return load


@pytest.mark.parametrize("pre", [names[0] for names in KINDS.values()])
def test_ids_equal_llama_cpp(pre: str, metadata: dict[str, Any], llama_vocab: Callable[[str], Any]) -> None:
    theirs = llama_vocab(pre)
    ours = Tokenizer.from_metadata({**metadata, "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": None}, 49152)
    for text in TEXTS + random_texts(300):
        assert ours.encode(text, add_bos=False) == theirs.tokenize(text.encode(), add_bos=False, special=True), (pre, text)
        assert ours.encode(text, add_bos=False, special=False) == theirs.tokenize(text.encode(), add_bos=False, special=False), (pre, text)
    assert ours.encode("a") == theirs.tokenize(b"a", add_bos=True, special=True)  # whether a prompt begins with bos


def test_ids_equal_tokenizers(metadata: dict[str, Any], tokenizer: Tokenizer) -> None:
    """SmolLM2's own pipeline, written down independently: single digits, then GPT-2's byte-level words."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    reference = HFTokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    reference.pre_tokenizer = pre_tokenizers.Sequence(words)
    reference.decoder = decoders.ByteLevel()
    reference.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[:17]])
    for text in TEXTS + random_texts(300):
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids, text


def test_round_trip_and_stream(tokenizer: Tokenizer) -> None:
    for text in TEXTS + random_texts(200):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, special=True) == text
        stream = tokenizer.stream(special=True)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.flush() == text
        assert not any("\ufffd" in piece for piece in pieces), text  # no half character ever leaves


def test_stream_holds_back_half_a_character(tokenizer: Tokenizer) -> None:
    by_byte = {tokenizer.token_bytes(i): i for i in range(17, 400) if len(tokenizer.token_bytes(i)) == 1}
    euro = [by_byte[bytes([b])] for b in "€".encode()]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in euro] == ["", "", "€"]
    stream = tokenizer.stream()
    assert stream.push(euro[0]) + stream.push(by_byte[b"a"]) + stream.flush() == "\ufffda"
    stream = tokenizer.stream()
    assert stream.push(euro[0]) + stream.flush() == "\ufffd"


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eot_id) == (1, 2, 2)
    assert tokenizer.eog_ids == {0, 2}  # <|endoftext|> and <|im_end|>
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.encode("<|im_start|>", special=False) != [1]
    assert tokenizer.decode(tokenizer.encode("<|im_start|>", special=False)) == "<|im_start|>"
    assert tokenizer.decode([1, 28120, 2]) == tokenizer.decode([28120])
    assert tokenizer.encode("x", add_bos=True)[0] == 1
    with pytest.raises(TokenizerError, match="49152"):
        tokenizer.decode([49152])


def tiny_metadata(**changes: Any) -> dict[str, Any]:
    """A complete byte-level vocabulary with one merge and two control tokens; a change of None removes the key."""
    tokens = ["<s>", "</s>", *sorted(byte_decoder()), "ab"]
    values: dict[str, Any] = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": [3, 3] + [1] * 257, "merges": ["a b"],
        "bos_token_id": 0, "eos_token_id": 1, **changes,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def test_tiny_vocabulary_works() -> None:
    tokenizer = Tokenizer.from_metadata(tiny_metadata())
    ids = tokenizer.encode("abba é")
    assert tokenizer.decode(ids) == "abba é" and ids[0] == 258


def test_listed_ends() -> None:
    """Ids that only the file's list names (two of generation_config.json, say) end a reply too."""
    assert Tokenizer.from_metadata(tiny_metadata(eog_token_ids=[1, 258])).eog_ids == {1, 258}


HOSTILE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "end past the vocabulary": (tiny_metadata(eog_token_ids=[1, 259]), ["eog_token_ids[1]", "259"]),
    "ends are texts": (tiny_metadata(eog_token_ids=["x"]), ["eog_token_ids", "str", "integers"]),
    "id past the vocabulary": (tiny_metadata(bos_token_id=259), ["bos_token_id", "259"]),
    "negative id": (tiny_metadata(eos_token_id=-7), ["eos_token_id", "-7", "259"]),
    "id is text": (tiny_metadata(eos_token_id="x"), ["eos_token_id", "'x'", "integer"]),
    "types shorter": (tiny_metadata(token_type=[1, 1]), ["token_type", "2", "259"]),
    "types are floats": (tiny_metadata(token_type=[1.0] * 259), ["token_type", "float", "integers"]),
    "type unknown": (tiny_metadata(token_type=[9] * 259), ["token_type[0]", "9", "0 to 6"]),
    "tokens are numbers": (tiny_metadata(tokens=[1, 2]), ["tokenizer.ggml.tokens", "int", "strings"]),
    "no tokens": (tiny_metadata(tokens=[]), ["tokenizer.ggml.tokens", "empty"]),
    "tokens missing": (tiny_metadata(tokens=None), ["tokenizer.ggml.tokens"]),
    "token repeated": (tiny_metadata(tokens=["<s>"] * 2 + ["x"] * 257), ["tokens[1]", "'<s>'"]),
    "very long token": (tiny_metadata(tokens=["<s>", "</s>", "x" * 70000] + [str(i) for i in range(256)]), ["tokens[2]", "70000", "65536"]),
    "merge of absent tokens": (tiny_metadata(merges=["a zz"]), ["merges[0]", "'zz'", "tokenizer.ggml.tokens"]),
    "merge into an absent token": (tiny_metadata(merges=["b a"]), ["merges[0]", "'ba'"]),
    "merge of one word": (tiny_metadata(merges=["ab"]), ["merges[0]", "'ab'", "space"]),
    "merges are numbers": (tiny_metadata(merges=[1]), ["merges", "int", "strings"]),
    "unknown pre-tokenizer": (tiny_metadata(pre="nope"), ["tokenizer.ggml.pre", "'nope'", "smollm"]),
    "other kind of tokenizer": (tiny_metadata(model="llama"), ["tokenizer.ggml.model", "'llama'", "gpt2"]),
    "no tokenizer": ({}, ["tokenizer.huggingface.json", "tokenizer.ggml.model"]),
    "add_bos is a number": (tiny_metadata(add_bos_token=1), ["add_bos_token", "true or false"]),
    "template is a list": ({**tiny_metadata(), "tokenizer.chat_template": ["x"]}, ["tokenizer.chat_template", "list", "string"]),
    "huggingface.json is no JSON": ({"tokenizer.huggingface.json": "{"}, ["tokenizer.huggingface.json"]),
    "huggingface.json is a number": ({"tokenizer.huggingface.json": 3}, ["tokenizer.huggingface.json", "int", "string"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(name: str) -> None:
    metadata, words = HOSTILE[name]
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_metadata(metadata)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{caught.value} lacks {missing}"


def test_more_tokens_than_the_model_has_rows() -> None:
    with pytest.raises(TokenizerError, match=r"259.*100"):
        Tokenizer.from_metadata(tiny_metadata(), 100)
    core = HFTokenizer(models.BPE(vocab={"a": 0, "b": 500}, merges=[]))
    with pytest.raises(TokenizerError, match=r"'b'.*500.*300"):
        Tokenizer.from_metadata({"tokenizer.huggingface.json": core.to_str()}, 300)


def test_huggingface_json(tiny_path: Path) -> None:
    """The whole tokenizer.json is used as it is."""
    with GGUFFile(tiny_path) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata, 320)
        reference = HFTokenizer.from_str(str(file.metadata["tokenizer.huggingface.json"]))
    for text in TEXTS:
        assert tokenizer.encode(text, add_bos=False) == reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False), special=True) == text


def test_sentencepiece_style_json_streams() -> None:
    """A tokenizer.json whose decoder is not byte-level: spaces as U+2581, unknown bytes as <0x..> tokens."""
    vocab = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4} | {f"<0x{b:02X}>": 5 + b for b in range(256)}
    core = HFTokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer.from_metadata({"tokenizer.huggingface.json": json.dumps(json.loads(core.to_str()))})
    ids = tokenizer.encode("▁ab€▁a")
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == " ab€ a" and "\ufffd" not in "".join(pieces)
