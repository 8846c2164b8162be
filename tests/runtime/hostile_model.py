"""Well-formed GGUF files that describe no usable model: hyperparameters, layer plan, tensors, tokenizer (FEATURES.md 5.3)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

from make_hostile import BOOL, F32, F64, GGML_F32, GGML_I32, GGUF, I32, STR, U8, U32, U64, Case, case, tiny_model

NAN, INF = math.nan, math.inf


def model(name: str, change: Callable[[GGUF], Any], *words: str, moe: bool = False, arch: str = "hysparse") -> Case:
    g = tiny_model(arch, moe=moe)
    change(g)
    return case(name, g, "ModelError", *words)


def value(name: str, key: str, kind: int, found: Any, *words: str, moe: bool = False) -> Case:
    """One key of the hysparse model with another type or value."""
    return model(name, lambda g: g.set(f"hysparse.{key}", kind, found), key, *words, moe=moe)


def per_layer(name: str, key: str, found: list[Any], *words: str, kind: int = I32) -> Case:
    return model(name, lambda g: g.set_array(f"hysparse.{key}", kind, found), key, *words)


def missing(key: str, moe: bool = False) -> Case:
    return model(f"{key}-missing", lambda g: g.drop(f"hysparse.{key}"), key, "missing", "expected", moe=moe)


def more_rope_dims_than_factors(g: GGUF) -> None:
    """Sparse layers rotate more dimensions than the frequency factors, which they take from the full layers, have entries."""
    g.set("hysparse.rope.dimension_count", U32, 16).set("hysparse.rope.dimension_count_sparse", U32, 32)
    g.tensor("rope_freqs.weight", [8], GGML_F32, struct.pack("<8f", *[1.0] * 8))


def hyperparameter_cases() -> list[Case]:
    kv, eps, base = "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base"
    cases = [
        value("block-count-0", "block_count", U32, 0, " 0", "expected 1 to 1024"),
        value("block-count-1025", "block_count", U32, 1025, "1025", "expected 1 to 1024"),
        value("block-count-max", "block_count", U32, 2**32 - 1, "4294967295", "expected 1 to 1024"),
        value("block-count-negative", "block_count", I32, -4, "-4", "expected 1 to 1024"),
        value("block-count-2^64-1", "block_count", U64, 2**64 - 1, str(2**64 - 1), "expected 1 to 1024"),
        value("block-count-f32", "block_count", F32, 4.0, "f32", "expected an integer"),
        value("block-count-string", "block_count", STR, "4", "string", "expected an integer"),
        value("nextn-all", "nextn_predict_layers", U32, 4, " 4", "expected 0 to 3"),
        value("context-0", "context_length", U32, 0, " 0", "expected 1 to"),
        value("context-negative", "context_length", I32, -1, "-1", "expected 1 to"),
        value("embedding-0", "embedding_length", U32, 0, " 0", "expected 1 to"),
        value("heads-0", "attention.head_count", U32, 0, " 0", "expected 1 to"),
        value("heads-2^40", "attention.head_count", U64, 2**40, str(2**40), "expected 1 to"),
        value("heads-string", "attention.head_count", STR, "2", "string", "expected an integer"),
        value("heads-f32", "attention.head_count", F32, 2.0, "f32", "expected an integer"),
        per_layer("heads-kv-short", kv, [1, 1, 1], "3 elements", "expected 4"),
        per_layer("heads-kv-long", kv, [1] * 5, "5 elements", "expected 4"),
        per_layer("heads-kv-0", kv, [1, 1, 0, 1], "[2] is 0", "expected 1 to"),
        per_layer("heads-kv-not-divisor", kv, [1, 1, 1, 3], "3", "layer 3", "expected a divisor"),
        per_layer("heads-kv-floats", kv, [1.0] * 4, "f32", "expected an integer", kind=F32),
        per_layer("heads-kv-strings", kv, ["1"] * 4, "string", "expected an integer", kind=STR),
        value("key-length-0", "attention.key_length", U32, 0, " 0", "expected 1 to"),
        value("key-length-33", "attention.key_length", U32, 33, "33", "expected a multiple of 32"),
        value("key-length-512", "attention.key_length", U32, 512, "512", "expected a multiple of 32"),
        value("value-length-16", "attention.value_length", U32, 16, "16", "expected a multiple of 32"),
        value("key-length-swa-8", "attention.key_length_swa", U32, 8, " 8", "expected a multiple of 32"),
        *(value(f"epsilon-{v}", eps, F32, v, str(v), "expected a finite") for v in (NAN, INF, -INF)),
        *(value(f"epsilon-{v}", eps, F32, v, f"{v:g}", "expected a finite number above 0") for v in (0.0, -1.0)),
        value("epsilon-u32", eps, U32, 1, "u32", "expected f32"),
        *(value(f"rope-base-{v}", base, F32, v, str(v), "expected a finite") for v in (NAN, INF)),
        *(value(f"rope-base-{v}", base, F32, v, f"{v:g}", "expected a finite number above 0") for v in (0.0, -1.0)),
        value("rope-base-f64-1e300", base, F64, 1e300, "1e+300", "expected a finite f32"),
        value("rope-base-sparse-nan", base + "_sparse", F32, NAN, "nan", "expected a finite"),
        value("rope-base-swa--2", base + "_swa", F32, -2.0, "-2", "expected a finite number above 0"),
        value("rope-dims-odd", "rope.dimension_count", U32, 3, " 3", "expected an even"),
        value("rope-dims-64", "rope.dimension_count", U32, 64, " 64", "expected 0 to 32"),
        model("rope-factors-too-few", more_rope_dims_than_factors, "rope.dimension_count_sparse", "32", "expected at most 16"),
        value("rope-scaling-unknown", "rope.scaling.type", STR, "longrope", "longrope", "expected none, linear or yarn"),
        value("rope-scaling-type-u32", "rope.scaling.type", U32, 1, "u32", "expected string"),
        value("rope-factor-0", "rope.scaling.factor", F32, 0.0, " 0", "expected a finite number above 0"),
        value("rope-factor-nan", "rope.scaling.factor", F32, NAN, "nan", "expected a finite"),
        value("value-scale-nan", "attention.value_scale", F32, NAN, "nan", "expected a finite"),
        value("ffn-negative", "feed_forward_length", I32, -1, "-1", "expected 0 to"),
        value("ffn-0", "feed_forward_length", U32, 0, " 0", "expected at least 1"),
        model("arch-missing", lambda g: g.drop("general.architecture"), "general.architecture", "missing", "expected"),
        model("arch-unknown", lambda g: g.set("general.architecture", STR, "gpt2"), "general.architecture", "gpt2", "expected hysparse"),
        model("arch-empty", lambda g: g.set("general.architecture", STR, ""), "general.architecture", "''", "expected hysparse"),
        model("arch-u32", lambda g: g.set("general.architecture", U32, 1), "general.architecture", "u32", "expected string"),
        model("arch-long", lambda g: g.set("general.architecture", STR, "a" * 10**6), "general.architecture", "aaaa", "expected hysparse"),
    ]
    cases += [missing(key) for key in ("block_count", "context_length", "embedding_length", "attention.head_count", eps)]
    return cases


def moe_cases() -> list[Case]:
    def moe(name: str, key: str, kind: int, found: Any, *words: str) -> Case:
        return value(name, key, kind, found, *words, moe=True)

    def shared(g: GGUF) -> None:
        g.set("hysparse.expert_shared_count", U32, 4096).set("hysparse.expert_feed_forward_length", U32, 2**24)

    return [
        moe("experts-used-5", "expert_used_count", U32, 5, " 5", "expected 1 to 4"),
        moe("experts-used-0", "expert_used_count", U32, 0, " 0", "expected 1 to 4"),
        moe("experts-0", "expert_count", U32, 0, "expert_layers", "expert_count is 0"),
        moe("experts-2^31", "expert_count", U32, 2**31, str(2**31), "expected 0 to 4096"),
        moe("experts-gating-3", "expert_gating_func", U32, 3, " 3", "expected 1 to 2"),
        moe("experts-gating-0", "expert_gating_func", U32, 0, " 0", "expected 1 to 2"),
        moe("experts-norm-u8", "expert_weights_norm", U8, 1, "u8", "expected bool"),
        moe("experts-scale-nan", "expert_weights_scale", F32, NAN, "nan", "expected a finite"),
        moe("experts-groups-3", "expert_group_count", U32, 3, " 3", "expected a divisor"),
        moe("experts-groups-5", "expert_group_count", U32, 5, " 5", "expected 0 to 4"),
        moe("experts-ffn-0", "expert_feed_forward_length", U32, 0, " 0", "expected 1 to"),
        model("experts-shared-wraps", shared, "expert_shared", "4096", "expected", moe=True),
        missing("expert_used_count", moe=True),
        missing("expert_feed_forward_length", moe=True),
    ]


def layer_plan_cases() -> list[Case]:
    kv, sel, local = "attention.kv_source", "attention.selection_source", "attention.local"

    def plan(name: str, kvs: list[int], sels: list[int], locals_: list[int], *words: str) -> Case:
        def change(g: GGUF) -> None:
            for key, values in ((kv, kvs), (sel, sels), (local, locals_)):
                g.set_array(f"hysparse.{key}", I32, values)

        return model(name, change, *words)

    block, top_k, window = "attention.sparse.block_size", "attention.sparse.top_k_blocks", "attention.sliding_window"
    heads_kv = "hysparse.attention.head_count_kv"
    good = [0, 0, -1, 3], [-1, 0, -1, -1], [0, 1, 1, 0]
    return [
        plan("first-layer-sparse", [0, 0, -1, 3], [0, 0, -1, -1], [2, 1, 1, 0], sel, "0 in layer 0", "expected an earlier full"),
        plan("source-is-sparse", [0, 0, -1, 3], [-1, 0, -1, 1], [0, 1, 1, 2], sel, "1 in layer 3", "expected an earlier full"),
        plan("source-is-sliding", [0, 0, -1, 3], [-1, 0, -1, 2], [0, 1, 1, 2], sel, "2 in layer 3", "expected an earlier full"),
        plan("source-is-later", [0, 3, -1, 3], [-1, 3, -1, -1], good[2], sel, "3 in layer 1", "expected an earlier full"),
        plan("source-is-itself", [0, 0, -1, 3], [-1, 1, -1, -1], good[2], sel, "1 in layer 1", "expected an earlier full"),
        plan("kv-is-later", [0, 3, -1, 3], [-1, 0, -1, -1], good[2], kv, "3 in layer 1", "expected an earlier full"),
        plan("kv-is-sliding", [0, 0, -1, 2], [-1, 0, -1, 0], [0, 1, 1, 1], kv, "2 in layer 3", "expected an earlier full"),
        plan("kv-none-but-selection", [0, -1, -1, 3], [-1, 0, -1, -1], good[2], kv, "-1 in layer 1", "expected an earlier full"),
        plan("kv-without-selection", [0, 0, -1, 3], [-1, -1, -1, -1], good[2], kv, "layer 1", "expected"),
        plan("kv--2", [0, -2, -1, 3], good[1], good[2], kv, "[1] is -2", "expected -1 to 3"),
        plan("kv-4", [0, 4, -1, 3], good[1], good[2], kv, "[1] is 4", "expected -1 to 3"),
        plan("selection--2", good[0], [-1, -2, -1, -1], good[2], sel, "[1] is -2", "expected -1 to 3"),
        plan("selection-int-max", good[0], [-1, 2**31 - 1, -1, -1], good[2], sel, str(2**31 - 1), "expected -1 to 3"),
        plan("local-3", good[0], good[1], [0, 3, 1, 0], local, "[1] is 3", "expected 0 to 2"),
        plan("local-in-full", good[0], good[1], [1, 1, 1, 0], local, "1 in full layer 0", "expected 0"),
        plan("local-none-in-sliding", good[0], good[1], [0, 1, 0, 0], local, "0 in sliding layer 2", "expected 1"),
        plan("local-none-in-sparse", good[0], good[1], [0, 0, 1, 0], local, "0 in layer 1", "expected 1"),
        plan("local-forced-shared", good[0], good[1], [0, 2, 1, 0], local, "2 in layer 1", "expected 1"),
        plan("local-own-with-own-cache", [0, 1, -1, 3], good[1], good[2], local, "layer 1", "expected 0 or 2"),
        plan("arrays-short", [0, 0, -1], good[1], good[2], kv, "3 elements", "expected 4"),
        plan("arrays-long", good[0], [-1, 0, -1, -1, -1], good[2], sel, "5 elements", "expected 4"),
        per_layer("selection-floats", sel, [-1.0, 0.0, -1.0, -1.0], "f32", "expected an integer", kind=F32),
        *(missing(key) for key in (kv, sel, local, block, top_k, window)),
        value("block-0", block, U32, 0, " 0", "expected 1 to"),
        value("block-2^31", block, U32, 2**31, str(2**31), "expected 1 to"),
        value("block-string", block, STR, "64", "string", "expected an integer"),
        value("top-k-0", top_k, U32, 0, " 0", "expected 1 to"),
        value("top-k-negative", top_k, I32, -1, "-1", "expected 1 to"),
        value("top-k-max", top_k, U32, 2**32 - 1, str(2**32 - 1), "expected 1 to"),
        value("window-0", window, U32, 0, " 0", "expected 1 to"),
        value("window-negative", window, I32, -8, "-8", "expected 1 to"),
        value("window-huge", window, U32, 2**31, str(2**31), "expected 1 to"),
        value("gate-3", "attention.gate", U32, 3, " 3", "expected 0 to 2"),
        model("heads-kv-not-the-weights", lambda g: g.set_array(heads_kv, I32, [2, 1, 1, 1]), "blk.0.attn_k", "32", "expected 64"),
        *other_heads(),
        per_layer("oracle-layers-past", "oracle.full_layers", [0, 4], "[1] is 4", "expected 0 to 3"),
        value("oracle-block-0", "oracle.block_size", U32, 0, " 0", "expected 1 to"),
    ]


def other_heads() -> list[Case]:
    """Keys of one full layer read with the selection of another that has another number of KV heads."""

    def change(g: GGUF) -> None:
        g.set_array("hysparse.attention.kv_source", I32, [0, 1, 0, 3])
        g.set_array("hysparse.attention.selection_source", I32, [-1, -1, 1, -1])
        g.set_array("hysparse.attention.local", I32, [0, 0, 1, 0]).set_array("hysparse.attention.head_count_kv", I32, [2, 1, 1, 1])

    return [model("selection-of-other-heads", change, "attention.head_count_kv", "2 in layer 0", "expected 1 as in layer 1")]


def tensor_cases() -> list[Case]:
    def without(name: str) -> Case:
        return model(f"without-{name}", lambda g: g.tensors.remove(g.find(name)), name, "missing")

    def reshaped(name: str, ne: list[int], *words: str) -> Case:
        def change(g: GGUF) -> None:
            t = g.find(name)
            t.ne, t.kind, t.data = ne, GGML_F32, bytes(4 * math.prod(ne))

        return model(f"shape-{name}-{'x'.join(map(str, ne))}", change, name, *words)

    def integers(g: GGUF) -> None:
        t = g.find("blk.0.attn_q.weight")
        t.kind, t.data = GGML_I32, bytes(4 * 32 * 64)

    def one_gate(g: GGUF) -> None:
        g.tensors.remove(g.find("blk.1.attn_gate_swa.weight"))

    return [
        *(without(f"{n}.weight") for n in ("token_embd", "output_norm", "blk.0.attn_norm", "blk.3.attn_q", "blk.2.ffn_down")),
        reshaped("token_embd.weight", [16, 258], "ne[0]", "16", "expected 32"),
        reshaped("token_embd.weight", [32, 258, 2], "ne[2]", "2", "expected 1"),
        reshaped("output_norm.weight", [31], "ne[0]", "31", "expected 32"),
        reshaped("blk.0.attn_q.weight", [32, 65], "ne[1]", "65", "expected 64"),
        reshaped("blk.1.attn_sinks.weight", [3], "ne[0]", "3", "expected 2"),
        reshaped("blk.1.attn_gate_sparse.weight", [32, 64], "ne[1]", "64", "expected 2"),
        reshaped("blk.3.ffn_down.weight", [32, 32, 1, 2], "ne[3]", "2", "expected 1"),
        model("weight-of-integers", integers, "blk.0.attn_q.weight", "i32", "expected"),
        model("one-gate", one_gate, "blk.1.attn_gate_swa.weight", "missing"),
        model("unknown-tensor", lambda g: g.tensor("blk.0.attn_extra.weight", [4]), "blk.0.attn_extra.weight", "not known"),
        model("tensor-of-no-layer", lambda g: g.tensor("blk.4.attn_norm.weight", [32]), "blk.4.attn_norm.weight", "not known"),
        model("only-q-norm", lambda g: g.tensor("blk.0.attn_q_norm.weight", [32]), "attn_q_norm", "expected both or neither"),
        model("two-rows-of-vocabulary-less", lambda g: g.set_array("tokenizer.ggml.tokens", STR, ["a"]), "tokenizer.ggml.tokens", "258"),
    ]


def nan_weights(name: str, bits: int) -> bytes:
    """A model with one F32 weight that is no finite number."""
    g = tiny_model()
    t = g.find(name)
    t.data = struct.pack("<I", bits) + t.data[4:]
    return g.build()


def token_id_cases() -> list[Case]:
    def token(name: str, kind: int, found: Any, *words: str) -> Case:
        key = f"tokenizer.ggml.{name}_token_id"
        return model(f"{name}-{found}", lambda g: g.set(key, kind, found), key, *words)

    return [
        token("bos", U32, 258, "258", "expected"),
        token("eos", U32, 2**31, str(2**31), "expected"),
        token("eot", I32, -7, "-7", "expected"),
        token("padding", U64, 2**63, str(2**63), "expected"),
        token("unknown", U32, 2**32 - 2, str(2**32 - 2), "expected"),
        token("bos", STR, "1", "string", "expected an integer"),
        token("eos", F32, 1.0, "f32", "expected an integer"),
    ]


def tokenizer_cases() -> list[Case]:
    """For the tokenizer: the C loader does not look at these keys."""

    def tok(name: str, change: Callable[[GGUF], Any], *words: str, error: str = "TokenizerError") -> Case:
        g = tiny_model()
        change(g)
        return case(name, g, error, *words)

    def tokens(g: GGUF, at: int, text: Any) -> None:
        values: list[Any] = [f"t{i}" for i in range(258)]
        values[at] = text
        g.set_array("tokenizer.ggml.tokens", STR, values).set_array("tokenizer.ggml.merges", STR, [])

    def merges(name: str, values: list[Any], *words: str) -> Case:
        return tok(name, lambda g: g.set_array("tokenizer.ggml.merges", STR, values), "tokenizer.ggml.merges[", *words)

    types = "tokenizer.ggml.token_type"
    json = "tokenizer.huggingface.json"
    return [
        tok("no-tokenizer", lambda g: g.drop("tokenizer.ggml.model"), "tokenizer.ggml.model", "no tokenizer"),
        tok("no-tokens", lambda g: g.drop("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
        tok("tokens-empty", lambda g: g.set_array("tokenizer.ggml.tokens", STR, []), "tokenizer.ggml.tokens", "empty"),
        tok("tokens-of-numbers", lambda g: g.set_array("tokenizer.ggml.tokens", U32, [1] * 258), "tokenizer.ggml.tokens", "expected"),
        tok("tokens-a-string", lambda g: g.set("tokenizer.ggml.tokens", STR, "abc"), "tokenizer.ggml.tokens", "expected"),
        tok("token-not-utf8", lambda g: tokens(g, 5, b"a\xff"), "tokenizer.ggml.tokens[5]", "0xff", "UTF-8", error="FormatError"),
        tok("token-repeated", lambda g: tokens(g, 5, "t4"), "tokenizer.ggml.tokens[5]", "'t4'", "expected"),
        tok("token-long", lambda g: tokens(g, 5, "x" * 100000), "tokenizer.ggml.tokens[5]", "100000", "expected at most"),
        tok("types-short", lambda g: g.set_array(types, I32, [1] * 257), types, "257", "expected 258"),
        tok("types-long", lambda g: g.set_array(types, I32, [1] * 259), types, "259", "expected 258"),
        tok("types-floats", lambda g: g.set_array(types, F32, [1.0] * 258), types, "expected"),
        tok("types-9", lambda g: g.set_array(types, I32, [1] * 257 + [9]), types, " 9", "expected 0 to"),
        tok("types-negative", lambda g: g.set_array(types, I32, [-1] + [1] * 257), types, "-1", "expected 0 to"),
        merges("merge-absent-part", ["h q"], "'hq' is not in"),
        merges("merge-absent-left", ["nosuch e"], "'nosuch' is not in"),
        merges("merge-no-space", ["he"], "'he'", "expected two tokens"),
        merges("merge-empty", [""], "''", "expected two tokens"),
        tok("pre-unknown", lambda g: g.set("tokenizer.ggml.pre", STR, "nonsense"), "tokenizer.ggml.pre", "nonsense"),
        tok("pre-u32", lambda g: g.set("tokenizer.ggml.pre", U32, 1), "tokenizer.ggml.pre", "int", "expected a string"),
        tok("model-unknown", lambda g: g.set("tokenizer.ggml.model", STR, "llama"), "tokenizer.ggml.model", "llama", "expected"),
        tok("model-u32", lambda g: g.set("tokenizer.ggml.model", U32, 1), "tokenizer.ggml.model", "1", "expected"),
        tok("add-bos-u32", lambda g: g.set("tokenizer.ggml.add_bos_token", U32, 1), "add_bos_token", "1", "expected"),
        tok("template-u32", lambda g: g.set("tokenizer.chat_template", U32, 1), "tokenizer.chat_template", "int", "expected a string"),
        tok("bos-bool", lambda g: g.set("tokenizer.ggml.bos_token_id", BOOL, 1), "bos_token_id", "True", "expected an integer"),
        tok("json-not-json", lambda g: g.set(json, STR, "{"), json, "expected"),
        tok("json-empty-object", lambda g: g.set(json, STR, "{}"), json, "expected"),
        tok("json-no-utf8", lambda g: g.set(json, STR, b"\xff{}"), json, "0xff", "UTF-8", error="FormatError"),
        tok("json-u32", lambda g: g.set(json, U32, 1), json, "int", "expected a string"),
        tok("json-deep", lambda g: g.set(json, STR, "[" * 100000), json, "expected"),
    ]


def model_cases() -> list[Case]:
    """What hs_model_load must refuse."""
    return [*hyperparameter_cases(), *moe_cases(), *layer_plan_cases(), *tensor_cases(), *token_id_cases()]
