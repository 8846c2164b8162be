"""Tokenizer keys: tokenizer.json whole, llama.cpp's lists, special ids, templates."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_values import Values
from reference.tiny import CHAT_TEMPLATE, make_checkpoint

from pyhysparse.convert import ConvertError, Report, convert
from pyhysparse.convert.tokenizer import pre_tokenizer_name

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def converted(folder: Path) -> tuple[dict[str, Any], Report]:
    report = convert(folder, folder / "out.gguf")
    return Values(folder / "out.gguf").keys, report


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}
    change(data)
    path.write_text(json.dumps(data))


def test_whole_file_lists_and_ids(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, vocab_size=330)
    keys, report = converted(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert keys["tokenizer.huggingface.json"] == (tmp_path / "tokenizer.json").read_text()
    assert keys["tokenizer.ggml.model"] == "gpt2" and keys["tokenizer.ggml.pre"] == "gpt-2" and report.warnings == []
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    vocab = tokenizer["model"]["vocab"]
    assert len(tokens) == len(types) == 330 and all(tokens[i] == text for text, i in vocab.items())
    assert types[:3] == [3, 3, 3] and set(types[3: len(vocab)]) == {1}
    assert tokens[len(vocab):] == [f"[PAD{i}]" for i in range(len(vocab), 330)] and set(types[len(vocab):]) == {5}
    assert keys["tokenizer.ggml.merges"] == [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.unknown_token_id"]) == (0, 2, 0)
    assert keys["tokenizer.ggml.add_bos_token"] is False and keys["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert keys["tokenizer.ggml.eog_token_ids"] == [2]


def test_added_tokens(tmp_path: Path) -> None:
    """User-defined unless special, or looking special; ids above the base vocabulary count too."""
    make_checkpoint(tmp_path, vocab_size=330)
    added = [{"id": 325, "content": "<tool>", "special": False}, {"id": 326, "content": "<|tool|>", "special": False},
             {"id": 327, "content": "<end>", "special": True}]
    edit(tmp_path / "tokenizer.json", lambda t: t["added_tokens"].extend(added))
    keys, _ = converted(tmp_path)
    assert keys["tokenizer.ggml.tokens"][324:329] == ["[PAD324]", "<tool>", "<|tool|>", "<end>", "[PAD328]"]
    assert keys["tokenizer.ggml.token_type"][324:329] == [5, 4, 3, 3, 5]
    edit(tmp_path / "tokenizer.json", lambda t: t["added_tokens"].append({"id": 330, "content": "<late>", "special": True}))
    with pytest.raises(ConvertError, match="id of token '<late>': found 330, expected less than vocab_size"):
        converted(tmp_path)


def template(*parts: str) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}} if p == "A" else
                                                     {"SpecialToken": {"id": p, "type_id": 0}} for p in parts]}


def test_add_bos(tmp_path: Path) -> None:
    """The post-processor's template decides, else tokenizer_config.json."""
    make_checkpoint(tmp_path)
    settings, tokenizer = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    edit(settings, lambda s: s.update({"add_bos_token": True, "add_eos_token": False}))
    keys, _ = converted(tmp_path)
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (True, False)
    edit(tokenizer, lambda t: t.update(post_processor={"type": "Sequence", "processors": [BYTE_LEVEL, template("A", "<|im_end|>")]}))
    keys, _ = converted(tmp_path)
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (False, True)
    edit(tokenizer, lambda t: t.update(post_processor=template("<|endoftext|>", "A")))
    keys, _ = converted(tmp_path)
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (True, False)


def test_several_end_tokens(tmp_path: Path) -> None:
    """generation_config.json lists more than one: the tokenizer's is eos, a known turn end is eot, all are listed."""
    make_checkpoint(tmp_path)
    edit(tmp_path / "generation_config.json", lambda g: g.update(eos_token_id=[0, 2]))
    edit(tmp_path / "tokenizer_config.json",
         lambda s: s.update(eos_token={"content": "<|endoftext|>", "special": True}, pad_token="<|im_start|>"))
    keys, _ = converted(tmp_path)
    assert [keys[f"tokenizer.ggml.{k}_token_id"] for k in ("eos", "eot", "padding")] == [0, 2, 1]
    assert keys["tokenizer.ggml.eog_token_ids"] == [0, 2]


def test_chat_templates(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda s: s.update(chat_template=[
        {"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]))
    keys, _ = converted(tmp_path)
    assert [keys[f"tokenizer.{k}"] for k in ("chat_template", "chat_template.tool_use", "chat_templates")] == ["one", "two", ["tool_use"]]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "three"}))
    assert converted(tmp_path)[0]["tokenizer.chat_template"] == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    assert converted(tmp_path)[0]["tokenizer.chat_template"] == "four"


def test_pre_tokenizer_names() -> None:
    def name(*steps: dict[str, Any]) -> str:
        return pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}})

    plain = {**BYTE_LEVEL, "use_regex": False}
    assert name({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated"}, plain) == "llama-bpe"
    assert name({"type": "Split", "pattern": {"Regex": LLAMA3.replace("{1,3}", "")}}, plain) == "qwen2"
    assert name({"type": "Split", "pattern": {"Regex": r"\d+"}}, plain) == "default"
    assert name({"type": "Digits", "individual_digits": True}, BYTE_LEVEL) == "smollm"
    assert name({"type": "Digits", "individual_digits": False}, BYTE_LEVEL) == "default"
    assert name({**BYTE_LEVEL, "add_prefix_space": True}) == "default"
    assert pre_tokenizer_name({"pre_tokenizer": BYTE_LEVEL}) == "gpt-2"
    assert pre_tokenizer_name({}) == "default"


def test_unknown_pre_tokenizer_warns(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda t: t["pre_tokenizer"].update(add_prefix_space=True))
    keys, report = converted(tmp_path)
    assert keys["tokenizer.ggml.pre"] == "default" and any("no name in llama.cpp" in text for text in report.warnings)


def test_not_byte_level(tmp_path: Path) -> None:
    """Sentencepiece-like BPE: tokenizer.json only; without tokenizer.json a refusal."""
    make_checkpoint(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda t: t.update(pre_tokenizer=None))
    keys, report = converted(tmp_path)
    assert "tokenizer.ggml.tokens" not in keys and "tokenizer.huggingface.json" in keys and keys["tokenizer.ggml.eos_token_id"] == 2
    assert any("not a byte-level BPE" in text for text in report.warnings)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(ConvertError, match=r"found tokenizer\.model, expected tokenizer\.json"):
        converted(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t["model"].update(vocab=[]), r"model\.vocab: found list"),
    (lambda t: t["model"]["vocab"].update(x="1"), "'x' with id '1'"),
    (lambda t: t["model"]["vocab"].update(x=-1), "'x' with id -1"),
    (lambda t: t["model"]["merges"].append(7), r"model\.merges: found 7"),
])
def test_damaged_tokenizer(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    make_checkpoint(tmp_path)
    edit(tmp_path / "tokenizer.json", change)
    with pytest.raises(ConvertError, match=message):
        converted(tmp_path)
