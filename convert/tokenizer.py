"""The tokenizer's keys: tokenizer.json whole, and for byte-level BPE llama.cpp's token list, types, merges and pre-tokenizer name."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import keys
from .checkpoint import read_json, read_text
from .config import Config
from .errors import ConvertError, mismatch
from .keys import KeyValues

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# Pre-tokenizers that llama.cpp knows by name, told apart by their regular expression.
_LETTERS_AND_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLIT_NAMES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LETTERS_AND_REST: "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _LETTERS_AND_REST: "qwen2",
}
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>$|<｜.*｜>$|<pad>$|<mask>$", re.DOTALL)  # control tokens that some models forget to mark
_EOT_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>")


def _steps(part: Any, field: str) -> list[dict[str, Any]]:
    """A pre-tokenizer, decoder or post-processor as a flat list of its steps."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [step for inner in part.get(field) or [] for step in _steps(inner, field)]
    return [part]


def _added_tokens(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise mismatch("tokenizer.json: added_tokens", repr(added)[:80], "a list of objects")
    return added


def _is_byte_level(tokenizer: dict[str, Any]) -> bool:
    model = tokenizer.get("model")
    return isinstance(model, dict) and model.get("type", "BPE") == "BPE" and "merges" in model and any(
        step.get("type") == "ByteLevel" for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer, from its structure: smollm, llama-bpe, qwen2, gpt-2, or "default" for an unknown one."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step.get("type") for step in steps]
    last = steps[-1] if steps else {}
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        pattern = steps[0].get("pattern")
        return _SPLIT_NAMES.get(pattern.get("Regex", "") if isinstance(pattern, dict) else "", "default")
    if last.get("use_regex", True) and not last.get("add_prefix_space", False):
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return "smollm"
    return "default"


def _vocabulary(tokenizer: dict[str, Any], n_vocab: int) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; ids without a token are [PAD{id}], unused, as in llama.cpp's converter."""
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    types = [UNUSED] * n_vocab

    def put(text: object, i: object, kind: int) -> None:
        if type(i) is not int or not isinstance(text, str) or i < 0:
            raise mismatch("tokenizer.json: token", f"{text!r} with id {i!r}", "a text and a number")
        if i >= n_vocab:
            raise mismatch(f"tokenizer.json: id of token {text!r}", i, f"less than vocab_size ({n_vocab}) of config.json")
        tokens[i], types[i] = text, kind

    vocab = tokenizer["model"].get("vocab")
    if not isinstance(vocab, dict):
        raise mismatch("tokenizer.json: model.vocab", type(vocab).__name__, "an object")
    for text, i in vocab.items():
        put(text, i, NORMAL)
    for entry in _added_tokens(tokenizer):
        text = entry.get("content")
        special = entry.get("special") or (isinstance(text, str) and _LOOKS_SPECIAL.match(text))
        put(text, entry.get("id"), CONTROL if special else USER_DEFINED)
    return tokens, types


def _merges(tokenizer: dict[str, Any]) -> list[str]:
    """Merges as "left right". Newer files have pairs; a space inside a part is written as the byte-level alphabet's U+0120."""
    merges, out = tokenizer["model"]["merges"], []
    if not isinstance(merges, list):
        raise mismatch("tokenizer.json: model.merges", type(merges).__name__, "a list")
    for merge in merges:
        if isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge):
            out.append(" ".join(part.replace(" ", "\u0120") for part in merge))
        elif isinstance(merge, str):
            out.append(merge)
        else:
            raise mismatch("tokenizer.json: model.merges", repr(merge)[:80], '"left right" or ["left", "right"]')
    return out


def _template_ends(tokenizer: dict[str, Any]) -> tuple[bool, bool] | None:
    """Whether the post-processor's template puts special tokens before and after a text; None without a template."""
    for step in _steps(tokenizer.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing":
            single = step.get("single")
            if not isinstance(single, list):
                raise mismatch("tokenizer.json: post_processor.single", type(single).__name__, "a list")
            at = next((i for i, part in enumerate(single) if "Sequence" in part), 0)
            return at > 0, at < len(single) - 1
    return None


def _text(value: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special_ids(tokenizer: dict[str, Any], settings: dict[str, Any], configs: list[Config],
                 n_vocab: int) -> tuple[dict[str, int], list[int]]:
    """({"bos": id, ...}, every id that ends a turn). The tokenizer's own special tokens come first, then the configs' ids."""
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = dict(vocab) if isinstance(vocab, dict) else {}
    ids.update((e["content"], e["id"]) for e in _added_tokens(tokenizer) if "content" in e and "id" in e)
    found: dict[str, int] = {}
    ends: list[int] = []
    for kind in ("bos", "eos", "unk", "pad", "eot"):
        text = _text(settings.get(f"{kind}_token"))
        if text is not None and text in ids:
            found[kind] = ids[text]
    for config in configs:
        for kind in ("bos", "eos", "pad"):
            value = config.data.get(f"{kind}_token_id")
            listed = value if isinstance(value, list) else [value]
            for i in listed:
                if i is None or (type(i) is int and i == -1):
                    continue
                if type(i) is not int or not 0 <= i < n_vocab:
                    raise mismatch(config.place(f"{kind}_token_id"), repr(i), f"an id below vocab_size ({n_vocab})")
                found.setdefault(kind, i)
                if kind == "eos":
                    ends.append(i)
    texts = {i: text for text, i in ids.items()}
    others = [i for i in dict.fromkeys(ends) if i != found.get("eos")]
    if "<|eom_id|>" in ids and ids["<|eom_id|>"] in others:
        found["eom"] = ids["<|eom_id|>"]
    by_text = sorted((i for i in others if texts.get(i) in _EOT_TEXTS), key=lambda i: _EOT_TEXTS.index(texts[i]))
    if by_text:
        found.setdefault("eot", by_text[0])
    all_ends = [i for i in (found.get("eos"), found.get("eot"), found.get("eom"), *ends) if i is not None]
    return found, list(dict.fromkeys(all_ends))


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Templates by name, "default" for the unnamed one: chat_template.jinja, chat_template.json, then tokenizer_config.json."""
    out: dict[str, str] = {}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        out[path.stem] = read_text(path)
    if (folder / "chat_template.jinja").is_file():
        out["default"] = read_text(folder / "chat_template.jinja")
        return out
    value = settings.get("chat_template")
    if (folder / "chat_template.json").is_file():
        value = read_json(folder / "chat_template.json").get("chat_template", value)
    if isinstance(value, str):
        out["default"] = value
    for entry in value if isinstance(value, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
            out[entry["name"]] = entry["template"]
    return out


def _set_templates(folder: Path, settings: dict[str, Any], kv: KeyValues) -> None:
    templates = _chat_templates(folder, settings)
    if templates.get("default"):
        kv.set(keys.CHAT_TEMPLATE, templates["default"])
    named = {name: text for name, text in templates.items() if name != "default" and re.fullmatch(r"[a-z0-9_]+", name) and text}
    for name, text in named.items():
        kv.set(keys.named_chat_template(name), text)
    kv.set(keys.CHAT_TEMPLATES, sorted(named))


def set_tokenizer_keys(folder: Path, config: Config, kv: KeyValues, warnings: list[str]) -> None:
    """Write the tokenizer keys of a checkpoint folder. `warnings` takes what the user should know.

    Raises ConvertError when there is a tokenizer but not as tokenizer.json.
    """
    n_vocab = config.integer("vocab_size")
    path = folder / "tokenizer.json"
    if not path.is_file():
        other = next((n for n in ("tokenizer.model", "vocab.json", "spiece.model", "tekken.json") if (folder / n).is_file()), None)
        if other:
            raise ConvertError(f"{folder.name}: found {other}, expected tokenizer.json; save the tokenizer again with transformers "
                               "(AutoTokenizer.from_pretrained(...).save_pretrained(...))")
        warnings.append("the checkpoint has no tokenizer: the file will take token ids only")
        return
    tokenizer = read_json(path)
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            settings.update((k, v) for k, v in read_json(folder / file).items() if v is not None)
    kv.set(keys.HUGGINGFACE_JSON, read_text(path))

    ends = _template_ends(tokenizer)
    add_bos, add_eos = ends if ends is not None else (settings.get("add_bos_token") is True, settings.get("add_eos_token") is True)
    if _is_byte_level(tokenizer):
        tokens, types = _vocabulary(tokenizer, n_vocab)
        pre = pre_tokenizer_name(tokenizer)
        if pre == "default":
            warnings.append("tokenizer: the pre-tokenizer has no name in llama.cpp; llama.cpp may split text differently")
        kv.set(keys.TOKENIZER_MODEL, "gpt2")
        kv.set(keys.TOKENIZER_PRE, pre)
        kv.set(keys.TOKENS, tokens)
        kv.set(keys.TOKEN_TYPE, types)
        kv.set(keys.MERGES, _merges(tokenizer))
    else:
        warnings.append("tokenizer: not a byte-level BPE; the file carries tokenizer.json only, which llama.cpp cannot use")
    configs = [config]
    if (folder / "generation_config.json").is_file():
        configs.insert(0, Config(read_json(folder / "generation_config.json"), "generation_config.json"))
    special, end_ids = _special_ids(tokenizer, settings, configs, n_vocab)
    for kind, i in special.items():
        kv.set(keys.SPECIAL_ID[kind], i)
    kv.set(keys.EOG_TOKEN_IDS, end_ids)
    kv.set(keys.ADD_BOS, add_bos)
    kv.set(keys.ADD_EOS, add_eos)
    _set_templates(folder, settings, kv)
