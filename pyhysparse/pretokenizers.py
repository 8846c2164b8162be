"""The pre-tokenizers of `tokenizer.ggml.pre` for byte-level BPE: the patterns that cut text into words before merging.

The patterns are those of the models' own tokenizer.json files; the names are the ones that llama.cpp's converter writes. A text is cut
by each pattern in turn, and what a pattern does not match stays a piece of its own (so does llama.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

from pyhysparse.errors import TokenizerError

__all__ = ["PreTokenizer", "pre_tokenizer"]

CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
)
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + TAIL
)

LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2")


@dataclass(frozen=True)
class PreTokenizer:
    """patterns: applied in turn. ignore_merges: a word that is a token is taken whole. add_bos: for files that do not say."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


KINDS: dict[PreTokenizer, tuple[str, ...]] = {
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): ("default",),
    PreTokenizer((GPT2,)): ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "roberta-bpe", "gigachat"),
    PreTokenizer((r"\p{N}", GPT2)): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True): LLAMA3_NAMES,
    PreTokenizer((LLAMA3,)): ("dbrx", "smaug-bpe"),
    PreTokenizer((QWEN2,)): ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo"),
    PreTokenizer((QWEN35,)): ("qwen35",),
    PreTokenizer((TEKKEN,), ignore_merges=True, add_bos=True): ("tekken",),
    PreTokenizer((O200K,)): ("gpt-4o", "llama4"),
    PreTokenizer((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3)): ("deepseek-v3",),
}
BY_NAME: dict[str, PreTokenizer] = {name: kind for kind, names in KINDS.items() for name in names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer that `tokenizer.ggml.pre` names; TokenizerError lists the known ones."""
    kind = BY_NAME.get(name)
    if kind is None:
        known = ", ".join(sorted(BY_NAME))
        raise TokenizerError(f"GGUF key tokenizer.ggml.pre is {name!r}; expected one of {known}, or a tokenizer.huggingface.json")
    return kind
