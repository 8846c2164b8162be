"""GGUF key names and value types, in one place; docs/gguf.md says what they mean. `{arch}` is general.architecture."""
from __future__ import annotations

from typing import Any, NamedTuple

import gguf

from .errors import mismatch

V = gguf.GGUFValueType
_TYPES: dict[str, Any] = {"u16": V.UINT16, "u32": V.UINT32, "i32": V.INT32, "f32": V.FLOAT32, "bool": V.BOOL, "str": V.STRING}


class Key(NamedTuple):
    """A key's name and type: u32, f32, bool, str, ..., or an array of them (`i32[]`)."""

    name: str
    type: str


ARCHITECTURE = Key("general.architecture", "str")
GENERAL_TYPE = Key("general.type", "str")
GENERAL_NAME = Key("general.name", "str")
SIZE_LABEL = Key("general.size_label", "str")
LICENSE = Key("general.license", "str")
FILE_TYPE = Key("general.file_type", "u32")
QUANTIZATION_VERSION = Key("general.quantization_version", "u32")

BLOCK_COUNT = Key("{arch}.block_count", "u32")
CONTEXT_LENGTH = Key("{arch}.context_length", "u32")
EMBEDDING_LENGTH = Key("{arch}.embedding_length", "u32")
FEED_FORWARD_LENGTH = Key("{arch}.feed_forward_length", "u32")
VOCAB_SIZE = Key("{arch}.vocab_size", "u32")

HEAD_COUNT = Key("{arch}.attention.head_count", "u32")
HEAD_COUNT_PER_LAYER = Key("{arch}.attention.head_count", "i32[]")
HEAD_COUNT_KV = Key("{arch}.attention.head_count_kv", "u32")
HEAD_COUNT_KV_PER_LAYER = Key("{arch}.attention.head_count_kv", "i32[]")
KEY_LENGTH = Key("{arch}.attention.key_length", "u32")
VALUE_LENGTH = Key("{arch}.attention.value_length", "u32")
KEY_LENGTH_SWA = Key("{arch}.attention.key_length_swa", "u32")
VALUE_LENGTH_SWA = Key("{arch}.attention.value_length_swa", "u32")
RMS_EPS = Key("{arch}.attention.layer_norm_rms_epsilon", "f32")
VALUE_SCALE = Key("{arch}.attention.value_scale", "f32")
KV_SOURCE = Key("{arch}.attention.kv_source", "i32[]")
SELECTION_SOURCE = Key("{arch}.attention.selection_source", "i32[]")
LOCAL = Key("{arch}.attention.local", "i32[]")
SLIDING_WINDOW = Key("{arch}.attention.sliding_window", "u32")
SLIDING_WINDOW_PATTERN = Key("{arch}.attention.sliding_window_pattern", "i32[]")
GATE = Key("{arch}.attention.gate", "u32")
SPARSE_BLOCK_SIZE = Key("{arch}.attention.sparse.block_size", "u32")
SPARSE_TOP_K_BLOCKS = Key("{arch}.attention.sparse.top_k_blocks", "u32")

EXPERT_LAYERS = Key("{arch}.expert_layers", "i32[]")
EXPERT_COUNT = Key("{arch}.expert_count", "u32")
EXPERT_USED_COUNT = Key("{arch}.expert_used_count", "u32")
EXPERT_FEED_FORWARD_LENGTH = Key("{arch}.expert_feed_forward_length", "u32")
EXPERT_SHARED_COUNT = Key("{arch}.expert_shared_count", "u32")
EXPERT_SHARED_FEED_FORWARD_LENGTH = Key("{arch}.expert_shared_feed_forward_length", "u32")
EXPERT_GATING_FUNC = Key("{arch}.expert_gating_func", "u32")
EXPERT_WEIGHTS_NORM = Key("{arch}.expert_weights_norm", "bool")
EXPERT_WEIGHTS_SCALE = Key("{arch}.expert_weights_scale", "f32")
EXPERT_GROUP_COUNT = Key("{arch}.expert_group_count", "u32")
EXPERT_GROUP_USED_COUNT = Key("{arch}.expert_group_used_count", "u32")
GATING_FUNC = {"softmax": 1, "sigmoid": 2}
GATE_KIND = {"none": 0, "head": 1, "channel": 2}
LOCAL_NONE, LOCAL_BRANCH = 0, 1

TOKENIZER_MODEL = Key("tokenizer.ggml.model", "str")
TOKENIZER_PRE = Key("tokenizer.ggml.pre", "str")
TOKENS = Key("tokenizer.ggml.tokens", "str[]")
TOKEN_TYPE = Key("tokenizer.ggml.token_type", "i32[]")
MERGES = Key("tokenizer.ggml.merges", "str[]")
ADD_BOS = Key("tokenizer.ggml.add_bos_token", "bool")
ADD_EOS = Key("tokenizer.ggml.add_eos_token", "bool")
EOG_TOKEN_IDS = Key("tokenizer.ggml.eog_token_ids", "i32[]")  # ours: every id that ends a turn
HUGGINGFACE_JSON = Key("tokenizer.huggingface.json", "str")
CHAT_TEMPLATE = Key("tokenizer.chat_template", "str")
CHAT_TEMPLATES = Key("tokenizer.chat_templates", "str[]")
SPECIAL_ID = {kind: Key(f"tokenizer.ggml.{name}_token_id", "u32") for kind, name in {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}.items()}


def named_chat_template(name: str) -> Key:
    """The key of a chat template other than the default one."""
    return Key(f"tokenizer.chat_template.{name}", "str")


def rope_dimension_count(suffix: str) -> Key:
    """Suffix "" (full layers), "_sparse" or "_swa"."""
    return Key(f"{{arch}}.rope.dimension_count{suffix}", "u32")


def rope_freq_base(suffix: str) -> Key:
    """Suffix as for rope_dimension_count."""
    return Key(f"{{arch}}.rope.freq_base{suffix}", "f32")


def rope_scaling(field: str, suffix: str) -> Key:
    """A `rope.scaling` key, e.g. field "factor"; suffix as for rope_dimension_count."""
    kind = {"type": "str", "original_context_length": "u32"}.get(field, "f32")
    return Key(f"{{arch}}.rope.scaling{suffix}.{field}", kind)


class KeyValues:
    """The keys of one file, in the order they were set. Setting a key twice is a programming error."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.values: dict[str, tuple[str, Any]] = {}
        self.set(ARCHITECTURE, arch)

    def set(self, key: Key, value: Any) -> None:
        """Store a value under the key's name with {arch} filled in."""
        name = key.name.format(arch=self.arch)
        assert name not in self.values, name
        if key.type.startswith("str"):
            for text in value if key.type == "str[]" else [value]:
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError as e:  # JSON can hold lone surrogates
                    raise mismatch(name, repr(text)[:80], "text that UTF-8 can hold") from e
        self.values[name] = (key.type, value)

    def write_to(self, writer: gguf.GGUFWriter) -> None:
        """Add all keys but general.architecture, which GGUFWriter adds itself. Empty arrays are left out (GGUF cannot hold them)."""
        for name, (kind, value) in self.values.items():
            if name == ARCHITECTURE.name:
                continue
            if not kind.endswith("[]"):
                writer.add_key_value(name, value, _TYPES[kind])
            elif value:
                writer.add_key_value(name, value, V.ARRAY, sub_type=_TYPES[kind[:-2]])
