"""Sampling: llama.cpp's chain with its names, order and defaults (runtime/sampler*.c does the work)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pyhysparse._ffi import Handle, check, ffi, floats, lib, new_error
from pyhysparse.errors import ArgumentError

__all__ = ["RANDOM_SEED", "Sampler", "SamplingKwargs", "SamplingParams"]

RANDOM_SEED = 0xFFFFFFFF

# Other names that users of llama.cpp and llama-cpp-python know -> ours
ALIASES = {
    "temp": "temperature",
    "typical_p": "typ_p",
    "typical": "typ_p",
    "repeat_penalty": "penalty_repeat",
    "repeat_last_n": "penalty_last_n",
    "frequency_penalty": "penalty_freq",
    "presence_penalty": "penalty_present",
    "mirostat_mode": "mirostat",
    "mirostat_lr": "mirostat_eta",
    "mirostat_ent": "mirostat_tau",
    "sampler_seq": "samplers",
}
# GGUF keys general.sampling.* -> ours: a model's own defaults
MODEL_DEFAULTS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "penalty_last_n",
    "penalty_repeat": "penalty_repeat",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}


class SamplingKwargs(TypedDict, total=False):
    """The keyword arguments of LLM.generate() and LLM.chat() that go to SamplingParams (other names: ALIASES)."""

    seed: int | None
    temperature: float
    temp: float
    dynatemp_range: float
    dynatemp_exponent: float
    top_k: int
    top_p: float
    min_p: float
    typ_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    penalty_last_n: int
    repeat_last_n: int
    penalty_repeat: float
    repeat_penalty: float
    penalty_freq: float
    frequency_penalty: float
    penalty_present: float
    presence_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    mirostat: int
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float]
    samplers: str
    min_keep: int


@dataclass(frozen=True)
class SamplingParams:
    """llama.cpp's sampling parameters and defaults. temperature <= 0 is greedy; seed None (or 0xFFFFFFFF) is random."""

    seed: int | None = None
    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40  # <= 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    typ_p: float = 1.0
    top_n_sigma: float = -1.0  # <= 0: off
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    penalty_last_n: int = 64  # 0: off, -1: the whole text
    penalty_repeat: float = 1.0
    penalty_freq: float = 0.0
    penalty_present: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64  # -1: the whole text
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    samplers: str | None = None  # order of the chain, "edskypmxt" when None
    min_keep: int = 0
    n_prev: int = 64
    n_probs: int = 0

    def updated(self, **changes: Any) -> SamplingParams:
        """A copy with these values; also under llama.cpp's and llama-cpp-python's other names. ArgumentError for an unknown name."""
        known = {f.name for f in fields(self)}
        values: dict[str, Any] = {}
        for name, value in changes.items():
            target = ALIASES.get(name, name)
            if target not in known:
                close = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
                raise ArgumentError(f"unknown sampling parameter {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
            if target in values and values[target] != value:
                raise ArgumentError(f"sampling parameter {target!r} is given twice, as {values[target]!r} and as {name}={value!r}")
            values[target] = value
        return replace(self, **values)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> SamplingParams:
        """The defaults, replaced by what the model file recommends (`general.sampling.*`)."""
        values: dict[str, Any] = {}
        for key, name in MODEL_DEFAULTS.items():
            value = metadata.get("general.sampling." + key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values[name] = int(value) if isinstance(getattr(cls, name), int) else float(value)
        return cls(**values)

    @property
    def remembers(self) -> int:
        """How many earlier tokens the chain looks at: -1 for all, 0 for none."""
        reach: list[int] = []
        if self.penalty_repeat != 1.0 or self.penalty_freq != 0.0 or self.penalty_present != 0.0:
            reach.append(self.penalty_last_n)
        if self.dry_multiplier > 0.0:
            reach.append(self.dry_penalty_last_n)
        return -1 if -1 in reach else max(reach, default=0)


class Sampler:
    """One sampling chain: draws tokens from logits and remembers what was accepted.

    n_vocab: length of the logits. breakers: token sequences that end a DRY match. Raises ArgumentError, which names the parameter.
    """

    def __init__(self, n_vocab: int, params: SamplingParams | None = None, breakers: Sequence[Sequence[int]] = ()) -> None:
        params = params or SamplingParams()
        self.params, self.n_vocab = params, n_vocab
        c, keep = c_params(params, breakers)
        out, error = ffi.new("hs_sampler **"), new_error()
        check(lib.hs_sampler_new(n_vocab, c, out, error), error)
        del keep  # C has copied what the pointers led to
        self._handle = Handle(out[0], lib.hs_sampler_free, "sampler")
        self._token = ffi.new("int32_t *")
        self._error = error

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Draw a token from logits float32 [n_vocab], which stay as they are. ArgumentError when they hold NaN."""
        if logits.dtype != np.float32 or logits.shape != (self.n_vocab,) or not logits.flags.c_contiguous:
            raise ArgumentError(f"logits are {logits.dtype} {logits.shape}; expected contiguous float32 ({self.n_vocab},)")
        check(lib.hs_sampler_sample(self._handle.pointer, floats(logits), self._token, self._error), self._error)
        return int(self._token[0])

    def accept(self, token: int) -> None:
        """Tell the chain a token of the text (penalties and DRY look back at them)."""
        check(lib.hs_sampler_accept(self._handle.pointer, token, self._error), self._error)

    def candidates(self, n: int = 10) -> list[tuple[int, float]]:
        """The n most probable (token, probability) of the distribution that the last sample was drawn from."""
        ids, probs = ffi.new("int32_t[]", max(n, 1)), ffi.new("float[]", max(n, 1))
        count = lib.hs_sampler_candidates(self._handle.pointer, ids, probs, n)
        return [(int(ids[i]), float(probs[i])) for i in range(count)]

    def reset(self) -> None:
        """History, mirostat state and random state as new."""
        lib.hs_sampler_reset(self._handle.pointer)

    @property
    def seed(self) -> int:
        """The seed in use, after a random choice."""
        return int(lib.hs_sampler_seed(self._handle.pointer))

    def close(self) -> None:
        self._handle.close()


def c_params(params: SamplingParams, breakers: Sequence[Sequence[int]]) -> tuple[Any, list[Any]]:
    """`hs_sampler_params *` and the buffers that it points to."""
    c = ffi.new("hs_sampler_params *", lib.hs_sampler_default_params())
    seed = RANDOM_SEED if params.seed is None else params.seed
    if not isinstance(seed, int) or not -1 <= seed <= RANDOM_SEED:
        raise ArgumentError(f"seed is {seed!r}; expected 0 to {RANDOM_SEED}, or None or -1 for a random one")
    c.seed = seed & RANDOM_SEED
    special = {"seed", "temperature", "dry_sequence_breakers", "logit_bias", "samplers"}
    for f in fields(params):
        if f.name not in special:
            set_number(c, f.name, f.name, getattr(params, f.name))
    set_number(c, "temp", "temperature", params.temperature)
    bias_tokens = ffi.new("int32_t[]", [int(token) for token in params.logit_bias])
    bias = ffi.new("float[]", [float(value) for value in params.logit_bias.values()])
    c.logit_bias_token, c.logit_bias, c.n_logit_bias = bias_tokens, bias, len(params.logit_bias)
    flat = ffi.new("int32_t[]", [token for breaker in breakers for token in breaker])
    lengths = ffi.new("int32_t[]", [len(breaker) for breaker in breakers])
    c.dry_breakers, c.dry_breaker_len, c.n_dry_breakers = flat, lengths, len(breakers)
    keep = [bias_tokens, bias, flat, lengths]
    if params.samplers is not None:
        order = ffi.new("char[]", params.samplers.encode())
        c.samplers = order
        keep.append(order)
    return c, keep


def set_number(c: Any, member: str, name: str, value: Any) -> None:
    try:
        setattr(c, member, value)
    except (TypeError, OverflowError):
        raise ArgumentError(f"sampling parameter {name} is {value!r}; expected a number") from None
