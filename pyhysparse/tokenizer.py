"""The model's tokenizer: read from a GGUF's `tokenizer.huggingface.json`, or rebuilt from its `tokenizer.ggml.*` (byte-level BPE).

The file is not trusted: every id, length and element is checked before use, and a message names the key, the value found and the value
expected. Which tokens end a reply follows llama.cpp: the eos, eot and eom ids and every control token with one of the usual end texts.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from pyhysparse.errors import TokenizerError
from pyhysparse.pretokenizers import pre_tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type, llama.cpp's numbers
MAX_TOKEN_BYTES = 65536
END_TEXTS = frozenset(
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<turn|>", "<|endoftext|>",
     "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "</s>", "<end_of_utterance>", "<｜end▁of▁sentence｜>"]
)  # fmt: skip
PREFIX = "tokenizer.ggml."


class Tokenizer:
    """Text <-> token ids.

    Attributes: n_vocab; bos_id, eos_id, eot_id, pad_id, unk_id (None where the file names none); eog_ids, the ids that end a reply;
    add_bos, whether a prompt starts with bos_id; chat_template, the Jinja source or None.
    """

    def __init__(self, core: HFTokenizer, metadata: Mapping[str, Any], n_vocab: int, special: Mapping[int, str], add_bos: bool) -> None:
        self._core = core
        self._plain: HFTokenizer | None = None
        self._special = dict(special)
        self._decoder = byte_decoder()
        added = core.get_added_tokens_decoder()
        self._added = {i: token.content.encode() for i, token in added.items()}
        self._byte_level = is_byte_level(core)
        self.n_vocab = n_vocab
        self.bos_id = special_id(metadata, "bos_token_id", n_vocab)
        self.eos_id = special_id(metadata, "eos_token_id", n_vocab)
        self.eot_id = special_id(metadata, "eot_token_id", n_vocab)
        self.pad_id = special_id(metadata, "padding_token_id", n_vocab)
        self.unk_id = special_id(metadata, "unknown_token_id", n_vocab)
        ends = {self.eos_id, self.eot_id, special_id(metadata, "eom_token_id", n_vocab)} - {None}
        ends |= {i for i, content in self._special.items() if content in END_TEXTS}
        ends |= set(listed_ends(metadata, n_vocab))
        self.eog_ids: frozenset[int] = frozenset(i for i in ends if i is not None)
        if self.eot_id is None:
            self.eot_id = next((i for i, content in self._special.items() if content in ("<|eot_id|>", "<|im_end|>", "<|end|>")), None)
        wanted = metadata.get(PREFIX + "add_bos_token")
        if wanted is not None and not isinstance(wanted, bool):
            raise TokenizerError(f"GGUF key {PREFIX}add_bos_token is {wanted!r}; expected true or false")
        self.add_bos = (add_bos if wanted is None else wanted) and self.bos_id is not None
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise TokenizerError(f"GGUF key tokenizer.chat_template has type {type(template).__name__}; expected a string")
        self.chat_template: str | None = template

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], n_vocab: int | None = None) -> Tokenizer:
        """Build it from GGUF metadata. `n_vocab`: rows of the model's output; ids from it on are refused (default: the tokenizer's own)."""
        source = metadata.get("tokenizer.huggingface.json")
        if source is not None:
            return from_huggingface(cls, source, metadata, n_vocab)
        return from_ggml(cls, metadata, n_vocab)

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = True) -> list[int]:
        """Token ids of a text. add_bos: None follows the model; special: False treats texts of control tokens as ordinary text."""
        try:
            ids: list[int] = (self._core if special else self._unspecial()).encode(text, add_special_tokens=False).ids
        except Exception as error:
            raise TokenizerError(f"cannot tokenize the text: {error}") from None
        if (self.add_bos if add_bos is None else add_bos) and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. special: write control tokens too instead of leaving them out."""
        if self._byte_level:
            return b"".join(self.token_bytes(i, special=special) for i in ids).decode("utf-8", errors="replace")
        kept = [i for i in map(self._checked, ids) if special or i not in self._special]
        return str(self._core.decode(kept, skip_special_tokens=False))

    def token_bytes(self, token: int, *, special: bool = True) -> bytes:
        """The bytes that one token stands for (part of a character, possibly); empty for control tokens unless `special`."""
        i = self._checked(token)
        if i in self._special and not special:
            return b""
        if i in self._added:
            return self._added[i]
        piece = self._core.id_to_token(i)
        if piece is None:
            return b""  # a row of the model's output that the tokenizer does not use
        if not self._byte_level:
            return str(self._core.decode([i], skip_special_tokens=False)).encode()
        table = self._decoder
        return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()

    def token_text(self, token: int) -> str:
        """The piece as it stands in the vocabulary ("Ġthe"); empty for an unused id."""
        return self._core.id_to_token(self._checked(token)) or ""

    def is_special(self, token: int) -> bool:
        """Whether the id is a control token."""
        return token in self._special

    def is_eog(self, token: int) -> bool:
        """Whether the id ends a reply."""
        return token in self.eog_ids

    def stream(self, *, special: bool = False) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        return StreamDecoder(self, special)

    @property
    def bos_text(self) -> str:
        return "" if self.bos_id is None else self.token_bytes(self.bos_id).decode("utf-8", errors="replace")

    @property
    def eos_text(self) -> str:
        return "" if self.eos_id is None else self.token_bytes(self.eos_id).decode("utf-8", errors="replace")

    @property
    def byte_level(self) -> bool:
        """Whether every token has bytes of its own, whatever stands before it."""
        return self._byte_level

    @property
    def core(self) -> HFTokenizer:
        """The `tokenizers.Tokenizer` inside."""
        return self._core

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"token id {token} is outside the vocabulary of {self.n_vocab}")
        return int(token)

    def _unspecial(self) -> HFTokenizer:
        if self._plain is None:
            plain = HFTokenizer.from_str(self._core.to_str())
            plain.encode_special_tokens = True
            self._plain = plain
        return self._plain


class StreamDecoder:
    """Turns token ids into text one by one, holding back the bytes of a character that is not complete yet."""

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []
        self._sent = ""

    def push(self, token: int) -> str:
        """The text that this token completes; often a word piece, sometimes nothing."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(self._tokenizer.token_bytes(token, special=self._special))
        self._ids.append(token)
        whole = self._tokenizer.decode(self._ids, special=self._special)
        if whole.endswith("\ufffd"):
            return ""
        piece, self._sent = whole[len(self._sent) :], whole
        return piece

    def flush(self) -> str:
        """What is still held back, as U+FFFD, at the end of the text."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        whole = self._tokenizer.decode(self._ids, special=self._special)
        return whole[len(self._sent) :]


def byte_decoder() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character (GPT-2's table): character -> byte."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(others)}


def is_byte_level(core: HFTokenizer) -> bool:
    if core.decoder is None:
        return False
    decoder = json.loads(core.decoder.__getstate__())  # its part of the tokenizer.json: the whole one takes longer than all else here
    parts = decoder.get("decoders", [decoder])
    return any(part.get("type") == "ByteLevel" for part in parts)


def special_id(metadata: Mapping[str, Any], name: str, n_vocab: int) -> int | None:
    """A special-token id, checked against the vocabulary; None when the file has none."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TokenizerError(f"GGUF key {PREFIX}{name} is {value!r}; expected an integer")
    if value in (-1, 0xFFFFFFFF):  # how some files write "none"
        return None
    if not 0 <= value < n_vocab:
        raise TokenizerError(f"GGUF key {PREFIX}{name} is {value}; expected an id below the vocabulary size {n_vocab}")
    return value


def listed_ends(metadata: Mapping[str, Any], n_vocab: int) -> list[int]:
    """The ids of `tokenizer.ggml.eog_token_ids` (ours: docs/gguf.md), checked against the vocabulary."""
    key = PREFIX + "eog_token_ids"
    ids = metadata.get(key, [])
    if not isinstance(ids, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise TokenizerError(f"GGUF key {key} has type {found_type(ids)}; expected an array of integers")
    for at, i in enumerate(ids):
        if not 0 <= i < n_vocab:
            raise TokenizerError(f"GGUF key {key}[{at}] is {i}; expected an id below the vocabulary size {n_vocab}")
    return ids


def from_huggingface(cls: type[Tokenizer], source: Any, metadata: Mapping[str, Any], n_vocab: int | None) -> Tokenizer:
    key = "tokenizer.huggingface.json"
    if not isinstance(source, str):
        raise TokenizerError(f"GGUF key {key} has type {type(source).__name__}; expected a string")
    try:
        core = HFTokenizer.from_str(source)
        core.no_truncation()
        core.no_padding()
    except BaseException as error:  # a Rust panic is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise TokenizerError(f"GGUF key {key}: {str(error)[:500]}; expected the text of a tokenizer.json") from None
    vocab = core.get_vocab(with_added_tokens=True)
    if not vocab:
        raise TokenizerError(f"GGUF key {key} holds an empty vocabulary")
    last = max(vocab.values())
    limit = last + 1 if n_vocab is None else n_vocab
    if last >= limit:
        token = next(t for t, i in vocab.items() if i == last)
        raise TokenizerError(f"GGUF key {key} gives {token!r} the id {last}; expected ids below the model's vocabulary size {limit}")
    special = {i: token.content for i, token in core.get_added_tokens_decoder().items() if token.special}
    bos = special_id(metadata, "bos_token_id", limit)
    add_bos = bos is not None and core.encode("", add_special_tokens=True).ids[:1] == [bos]
    return cls(core, metadata, limit, special, add_bos)


def string_list(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(PREFIX + name)
    if value is None:
        raise TokenizerError(f"the GGUF has no key {PREFIX}{name} (and no tokenizer.huggingface.json): a byte-level BPE tokenizer needs it")
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        raise TokenizerError(f"GGUF key {PREFIX}{name} has type {found_type(value)}; expected an array of strings")
    return value


def found_type(value: Any) -> str:
    return f"array of {type(value[0]).__name__ if value else 'nothing'}" if isinstance(value, list) else type(value).__name__


def checked_tokens(metadata: Mapping[str, Any]) -> dict[str, int]:
    """tokenizer.ggml.tokens as text -> id."""
    key = PREFIX + "tokens"
    tokens = string_list(metadata, "tokens")
    if not tokens:
        raise TokenizerError(f"GGUF key {key} is empty; expected a vocabulary")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) == len(tokens) and "" not in vocab and max(map(len, tokens)) <= MAX_TOKEN_BYTES:
        return vocab
    vocab = {}  # one by one, for the message or the name of an empty text
    for i, token in enumerate(tokens):
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenizerError(f"GGUF key {key}[{i}] has {len(token)} characters; expected at most {MAX_TOKEN_BYTES}")
        name = token or f"[EMPTY_{i}]"
        if name in vocab:
            raise TokenizerError(f"GGUF key {key}[{i}] repeats token {vocab[name]}, {name[:80]!r}; expected different texts")
        vocab[name] = i
    return vocab


class Pairs(Sequence[Any]):
    """Merges as pairs, made as they are read: a list of them all would keep Python's garbage collector busy."""

    def __init__(self, merges: Sequence[str]) -> None:
        self._merges = merges

    def __len__(self) -> int:
        return len(self._merges)

    def __getitem__(self, i: Any) -> Any:
        return tuple(self._merges[i].split(" ", 1))

    def __iter__(self) -> Iterator[Any]:
        return (tuple(merge.split(" ", 1)) for merge in self._merges)


def bpe(metadata: Mapping[str, Any], vocab: dict[str, int], ignore_merges: bool) -> models.BPE:
    """The model of a vocabulary and tokenizer.ggml.merges; each half of a merge and the whole must be tokens."""
    merges = string_list(metadata, "merges")
    try:  # `tokenizers` looks every part up: ours is only the message
        return models.BPE(vocab=vocab, merges=cast(Any, Pairs(merges)), ignore_merges=ignore_merges)
    except Exception:
        return models.BPE(vocab=vocab, merges=checked_merges(merges, vocab), ignore_merges=ignore_merges)


def checked_merges(merges: Sequence[str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges as pairs; TokenizerError names the first that is none."""
    key = PREFIX + "merges"
    pairs: list[tuple[str, str]] = []
    for i, merge in enumerate(merges):
        cut = merge.find(" ", 1)
        if cut < 0:
            raise TokenizerError(f"GGUF key {key}[{i}] is {merge[:80]!r}; expected two tokens with a space between them")
        left, right = merge[:cut], merge[cut + 1 :]
        for part in (left, right, left + right):
            if part not in vocab:
                raise TokenizerError(f"GGUF key {key}[{i}] is {merge[:80]!r}; {part[:80]!r} is not in {PREFIX}tokens")
        pairs.append((left, right))
    return pairs


def checked_types(metadata: Mapping[str, Any], n_tokens: int) -> list[int]:
    key = PREFIX + "token_type"
    types = metadata.get(key)
    if types is None:
        return [NORMAL] * n_tokens
    if not isinstance(types, list) or any(kind is bool or not issubclass(kind, int) for kind in set(map(type, types))):
        raise TokenizerError(f"GGUF key {key} has type {found_type(types)}; expected an array of integers")
    if len(types) != n_tokens:
        raise TokenizerError(f"GGUF key {key} has {len(types)} elements; expected {n_tokens}, one for each of {PREFIX}tokens")
    for kind in set(types):
        if not 0 <= kind <= BYTE:
            raise TokenizerError(f"GGUF key {key}[{types.index(kind)}] is {kind}; expected 0 to {BYTE}")
    return types


def from_ggml(cls: type[Tokenizer], metadata: Mapping[str, Any], n_vocab: int | None) -> Tokenizer:
    model = metadata.get(PREFIX + "model")
    if model is None:
        raise TokenizerError(f"the GGUF has neither tokenizer.huggingface.json nor {PREFIX}model: it holds no tokenizer")
    if model != "gpt2":
        raise TokenizerError(f"GGUF key {PREFIX}model is {model!r}; expected 'gpt2' (byte-level BPE) or a tokenizer.huggingface.json")
    name = metadata.get(PREFIX + "pre", "default")
    if not isinstance(name, str):
        raise TokenizerError(f"GGUF key {PREFIX}pre has type {found_type(name)}; expected a string")
    kind = pre_tokenizer(name)
    vocab = checked_tokens(metadata)
    limit = len(vocab) if n_vocab is None else n_vocab
    if len(vocab) > limit:
        raise TokenizerError(f"GGUF key {PREFIX}tokens has {len(vocab)} elements; expected at most the model's vocabulary size {limit}")
    types = checked_types(metadata, len(vocab))
    core = HFTokenizer(bpe(metadata, vocab, kind.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in kind.patterns]
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    added = [(token, i) for (token, i), t in zip(vocab.items(), types, strict=True) if t != NORMAL]
    special = {i: token for token, i in added if types[i] in (CONTROL, UNKNOWN)}
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for i, token in special.items()])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token, i in added if types[i] == USER_DEFINED])
    return cls(core, metadata, limit, special, kind.add_bos)
