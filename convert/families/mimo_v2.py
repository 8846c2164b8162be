"""MiMo-V2 (Flash, V2.5): transformers' and the hub's own config.json to llama.cpp's `mimo2`.

Multi-token prediction layers and V2.5's vision and audio towers are left out, by name: this runtime is text only, without draft heads.
"""
from __future__ import annotations

import re

from .. import keys
from ..bind import Binder, OutTensor, Piece, Scale
from ..checkpoint import StoredTensor
from ..config import Config
from ..dtypes import FP8
from ..errors import ConvertError, mismatch
from ..keys import KeyValues
from ..rope import rope_of
from .common import bind_biases, bind_embeddings, bind_ffn, bind_norms, bind_rope, read_moe, read_sizes, set_size_keys
from .options import Options

LEFT_OUT = re.compile(r"model\.mtp\.|visual\.|audio_encoder\.|speech_embeddings\.")
TP_SIZES = (1, 2, 4, 8, 16)


def _sliding_layers(config: Config, n_layer: int) -> list[bool]:
    """Which layers slide: hub's hybrid_layer_pattern (1), transformers' layer_types."""
    if config.has("hybrid_layer_pattern"):
        flags = config.items("hybrid_layer_pattern", length=n_layer)
        for il, flag in enumerate(flags):
            if flag not in (0, 1):
                raise mismatch(config.place(f"hybrid_layer_pattern[{il}]"), repr(flag), "0 (full) or 1 (sliding)")
        return [flag == 1 for flag in flags]
    types = config.items("layer_types", length=n_layer)
    for il, kind in enumerate(types):
        if kind not in ("full_attention", "sliding_attention"):
            raise mismatch(config.place(f"layer_types[{il}]"), repr(kind), "'full_attention' or 'sliding_attention'")
    return [kind == "sliding_attention" for kind in types]


def _window(config: Config) -> int:
    """Keys in the window, the current token included. The hub's size counts previous tokens only (transformers' loader adds one, too)."""
    if config.has("sliding_window_size"):
        return config.integer("sliding_window_size") + 1
    window = config.integer("sliding_window")
    return window + 1 if config.has("hybrid_layer_pattern") else window


def _tp_size(b: Binder, fused: list[tuple[StoredTensor, int]], heads: set[int], options: Options) -> int:
    """Tensor-parallel ranks of the fused qkv_proj rows, each rank's rows being its share of the heads of Q, K and V.

    The number of scale rows tells: a rank's rows are padded to whole FP8 blocks. All layers must agree on one size.
    fused: (tensor, its rows); heads: the head counts, which the size must divide.
    """
    where = f"tensor {fused[0][0].name}"
    sizes = [tp for tp in TP_SIZES if options.qkv_tp_size in (None, tp) and all(n % tp == 0 for n in heads)]
    for stored, n_rows in fused:
        if stored.dtype in FP8:
            n_scale = b.scale_of(stored).n_rows
            sizes = [tp for tp in sizes if tp * -(-(n_rows // tp) // b.block[0]) == n_scale]
    if options.qkv_tp_size is not None and not sizes:
        raise mismatch(f"{where}: qkv_tp_size", options.qkv_tp_size, "a size that fits the heads and scales of all fused layers")
    if len(sizes) != 1:
        found = "several" if sizes else "none"
        raise ConvertError(f"{where}: {found} of the tensor-parallel sizes {list(TP_SIZES)} fit the fused qkv_proj, expected one; "
                           "the order of its rows cannot be told from the checkpoint: give qkv_tp_size (1: plain Q, K, V rows)")
    return sizes[0]


def _bind_fused_qkv(b: Binder, il: int, stored: StoredTensor, rows: tuple[int, int, int], n_embd: int, tp: int) -> None:
    """Split qkv_proj [tp * (q + k + v) / tp, n_embd] into attn_q, attn_k and attn_v."""
    b.take(stored, (sum(rows), n_embd))
    per_rank = sum(rows) // tp
    blocks = -(-per_rank // b.block[0])
    scale_name = ""
    if stored.dtype in FP8:
        scale_name = b.take(b.scale_of(stored), (tp * blocks, -(-n_embd // b.block[1]))).name
    start = 0
    for name, n in zip(("attn_q", "attn_k", "attn_v"), rows, strict=True):
        pieces = []
        for rank in range(tp):
            lo = rank * per_rank + start // tp
            scale = Scale(scale_name, b.block, rank * blocks, rank * per_rank) if scale_name else None
            pieces.append(Piece(stored.name, lo, lo + n // tp, scale))
        b.tensors.append(OutTensor(f"blk.{il}.{name}.weight", (n, n_embd), tuple(pieces)))
        start += n


def build(config: Config, b: Binder, kv: KeyValues, options: Options) -> None:
    """Keys and tensors of a MiMo-V2 model."""
    s = read_sizes(config)
    sliding = _sliding_layers(config, s.n_layer)
    if sliding[0]:
        raise mismatch(config.place("layer_types[0]"), "a sliding layer", "a full layer")
    v_dim = config.integer("v_head_dim", default=s.head_dim, high=65536)
    for name, expected in (("swa_num_attention_heads", s.n_head), ("swa_head_dim", s.head_dim), ("swa_v_head_dim", v_dim)):
        config.forbid(name, (expected,), "sliding layers as wide as full ones")
    swa_kv = config.integer("swa_num_key_value_heads", default=2 * s.n_head_kv, high=65536)  # transformers has no field: twice as many
    if s.n_head % swa_kv:
        raise mismatch(config.place("swa_num_key_value_heads"), swa_kv, f"a divisor of num_attention_heads ({s.n_head})")
    n_head_kv = [swa_kv if slides else s.n_head_kv for slides in sliding]

    set_size_keys(kv, config, s)
    kv.set(keys.HEAD_COUNT, s.n_head)
    kv.set(keys.HEAD_COUNT_KV_PER_LAYER, n_head_kv)
    kv.set(keys.KEY_LENGTH, s.head_dim)
    kv.set(keys.VALUE_LENGTH, v_dim)
    kv.set(keys.SLIDING_WINDOW, _window(config))
    kv.set(keys.SLIDING_WINDOW_PATTERN, [int(slides) for slides in sliding])
    if config.has("attention_value_scale"):
        kv.set(keys.VALUE_SCALE, config.number("attention_value_scale"))
    rope = rope_of(config, "full_attention", s.head_dim, default_theta=5e6, default_partial=0.334)
    rope_swa = rope_of(config, "sliding_attention", s.head_dim, default_theta=1e4, default_partial=0.334, theta_field="swa_rope_theta")
    if rope.kind != "default" or rope_swa.kind != "default" or rope.n_rot != rope_swa.n_rot:
        raise mismatch(config.place("rope_parameters"), f"{rope.kind} and {rope_swa.kind}, {rope.n_rot} and {rope_swa.n_rot} dimensions",
                       "unscaled RoPE over the same dimensions in full and sliding layers (all that mimo2 files can say)")
    bind_rope(kv, b, rope)
    kv.set(keys.rope_freq_base("_swa"), rope_swa.theta)
    moe = read_moe(config, kv, s.n_layer)

    bind_embeddings(config, b, s)
    sinks = {True: config.flag("add_swa_attention_sink_bias", default=True),
             False: config.flag("add_full_attention_sink_bias", default=False)}
    bias = config.flag("attention_bias", default=False)
    rows = [(s.n_head * s.head_dim, n * s.head_dim, n * v_dim) for n in n_head_kv]
    fused = {il: stored for il in range(s.n_layer) if (stored := b.find(f"model.layers.{il}.self_attn.qkv_proj.weight"))}
    tp = _tp_size(b, [(t, sum(rows[il])) for il, t in fused.items()], {s.n_head, *(n_head_kv[il] for il in fused)}, options) if fused else 1
    for il in range(s.n_layer):
        bind_norms(b, il, s)
        if il in fused:
            _bind_fused_qkv(b, il, fused[il], rows[il], s.n_embd, tp)
        else:
            for name, n in zip(("q_proj", "k_proj", "v_proj"), rows[il], strict=True):
                b.add_layer(il, f"self_attn.{name}.weight", (n, s.n_embd))
        b.add_layer(il, "self_attn.o_proj.weight", (s.n_embd, s.n_head * v_dim))
        bind_biases(config, b, il, dict(zip(("q_proj", "k_proj", "v_proj"), rows[il], strict=True)), required=bias)
        if sinks[sliding[il]]:
            b.add_layer(il, "self_attn.sinks", (s.n_head,))
        bind_ffn(b, il, s, moe)
    b.ignore(LEFT_OUT)
    if b.ignored:
        b.warnings.append("left out: multi-token prediction layers and vision or audio towers (listed as ignored)")
