"""A loaded model: weights, hyperparameters, layer plan. Immutable; any number of sessions can share one."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyhysparse._ffi import Callback, Handle, check, ffi, lib, new_error, path_bytes, text
from pyhysparse.errors import ArgumentError, ClosedError
from pyhysparse.gguf import GGUFFile
from pyhysparse.placement import GpuLayers, set_placement

if TYPE_CHECKING:
    from pyhysparse.session import Session, SessionParams

__all__ = ["LayerInfo", "MemoryUse", "Model", "ModelInfo", "Oracle"]

Oracle = bool | Mapping[str, Any]
ORACLE_KEYS = ("full_layers", "block_size", "top_k_tokens", "window")


@dataclass(frozen=True)
class ModelInfo:
    """Hyperparameters (hs_model_info). block_size, top_k_blocks and window are 0 where the model has none; oracle: the mode is on.
    n_gpu_layers: as placed, n_layer + 1 with the output; placement: what lies where, in words."""

    arch: str
    name: str
    ftype: str
    n_layer: int
    n_embd: int
    n_vocab: int
    n_head: int
    n_ctx_train: int
    n_expert: int
    n_expert_used: int
    block_size: int
    top_k_blocks: int
    window: int
    oracle: bool
    n_params: int
    weight_bytes: int
    fingerprint: int
    n_gpu_layers: int
    placement: str


@dataclass(frozen=True)
class LayerInfo:
    """One row of the layer plan (hs_layer_info; SPEC 5). kv_source and selection_source: a layer number, or -1 for none."""

    kind: str  # "full", "sparse", "sliding"
    kv_source: int
    selection_source: int
    local: str  # "none", "own", "forced"
    emits_scores: bool
    owns_pages: bool
    owns_ring: bool
    window: int
    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    n_rot: int
    gate: str  # "none", "head", "channel"
    sinks: bool
    sparse_sinks: bool
    qk_norm: bool
    moe: bool
    rope_freq_base: float
    device: str  # where its weights and caches lie: "CPU", "CUDA0"
    cpu_moe: bool  # but its experts lie in host memory


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a session (hs_memory): planned by Model.memory_plan (compute and checkpoints 0) or allocated, by Session.memory."""

    weights: int
    pages: int
    rings: int
    compute: int
    checkpoints: int
    page_bytes_per_token: int
    ring_bytes_per_seq: int
    full_attention_bytes_per_token: int
    n_pages: int
    page_size: int


def from_struct(cls: type[Any], struct: Any) -> Any:
    """A dataclass from the C struct whose members have its field names."""
    values: dict[str, Any] = {}
    for f in fields(cls):
        value = getattr(struct, f.name)
        values[f.name] = text(value) if f.type == "str" else value
    return cls(**values)


class Model:
    """Load a GGUF file.

    path: any shard of a split file opens them all. use_mmap: map the file instead of reading it. repack: ggml's repacked CPU weights
    (faster, some more memory). check_tensors: refuse NaN and Inf weights. oracle: False; True for the list of full layers that the
    file holds; or a dict of full_layers (ascending, the first is 0), block_size, top_k_tokens, window. progress: called with the
    fraction loaded; returning False stops the load (CancelledError).

    Placement, with llama.cpp's names. n_gpu_layers: layers on GPUs, counted from the output (1 is the output alone, n_layer + 1
    everything); "auto": as many as fit beside the caches of a session with the parameters `fit` (None: the default ones), for models with
    experts these first moved to the CPU; "all" or -1; 0 for none. Without a GPU everything runs on the CPU. cpu_moe, n_cpu_moe: experts of
    all layers, or of the first so many, stay on the CPU. devices: names from pyhysparse.devices(), in the order of the layers (None: every
    GPU; "none": the CPU). tensor_split: the share of each of them (None: by free memory).

    Raises FileError, FormatError, ModelError, OutOfMemoryError, ArgumentError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        use_mmap: bool = True,
        repack: bool = True,
        check_tensors: bool = False,
        oracle: Oracle = False,
        progress: Callable[[float], Any] | None = None,
        n_gpu_layers: GpuLayers = "auto",
        n_cpu_moe: int = 0,
        cpu_moe: bool = False,
        devices: Sequence[str] | str | None = None,
        tensor_split: Sequence[float] | None = None,
        fit: SessionParams | None = None,
    ) -> None:
        params = ffi.new("hs_model_params *", lib.hs_model_default_params())
        params.use_mmap, params.repack, params.check_tensors = use_mmap, repack, check_tensors
        keep = [set_oracle(params, oracle), *set_placement(params, n_gpu_layers, n_cpu_moe, cpu_moe, devices, tensor_split, fit)]
        callback = None if progress is None else Callback(progress)
        if callback is not None:
            params.progress, params.progress_user = lib.hs_py_progress, callback.handle
        out, error = ffi.new("hs_model **"), new_error()
        code = lib.hs_model_load(path_bytes(path), params, out, error)
        del keep  # C has read or copied it
        if callback is not None:
            if callback.error is not None and code == lib.HS_OK:
                lib.hs_model_free(out[0])
            callback.reraise()
        check(code, error)
        self.handle = Handle(out[0], lib.hs_model_free, "model")
        self.path = os.fspath(path)
        info = ffi.new("hs_model_info *")
        lib.hs_model_info_get(self.handle.pointer, info)
        self.info: ModelInfo = from_struct(ModelInfo, info)
        self.gguf = GGUFFile.of_model(self.handle)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closing = False

    @property
    def n_gpu_layers(self) -> int:
        """Layers on GPUs; n_layer + 1 with the output."""
        return self.info.n_gpu_layers

    @property
    def placement(self) -> str:
        """What lies where: "CUDA0: layers 0-35, output (4.60 GiB with caches); CPU: no layers, input (0.30 GiB)"."""
        return self.info.placement

    @property
    def layers(self) -> list[LayerInfo]:
        """The layer plan, a row a layer."""
        row, rows = ffi.new("hs_layer_info *"), []
        for il in range(self.info.n_layer):
            check(lib.hs_model_layer(self.handle.pointer, il, row), new_error())
            rows.append(from_struct(LayerInfo, row))
        return rows

    def memory_plan(self, params: SessionParams | None = None) -> MemoryUse:
        """What a session with these parameters would allocate, from the layer plan alone."""
        from pyhysparse.session import SessionParams

        c, keep = (params or SessionParams()).to_c()
        out, error = ffi.new("hs_memory *"), new_error()
        check(lib.hs_memory_plan(self.handle.pointer, c, out, error), error)
        del keep
        plan: MemoryUse = from_struct(MemoryUse, out)
        return plan

    @contextmanager
    def opening(self) -> Iterator[None]:
        """While a session is made: close() in another thread waits, so that it knows every session that uses the weights."""
        with self._lock:
            if self._closing:
                raise ClosedError("this model is closed")
            yield

    def adopt(self, session: Session) -> None:
        """Remember a session, which must be closed before the model is."""
        self._sessions.add(session)

    @property
    def closed(self) -> bool:
        return self.handle.closed

    def close(self) -> None:
        """Close its sessions and free the weights now."""
        with self._lock:
            self._closing = True
        try:
            for session in list(self._sessions):
                session.close()
            self.handle.close()
        finally:
            self._closing = self.closed

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def set_oracle(params: Any, oracle: Oracle) -> Any:
    """Fill the oracle members of hs_model_params; returns the list that they point to."""
    if isinstance(oracle, bool):
        params.oracle = int(oracle)
        return None
    if not isinstance(oracle, Mapping):
        raise ArgumentError(f"oracle is {oracle!r}; expected True, False or a dict of {', '.join(ORACLE_KEYS)}")
    unknown = sorted(set(oracle) - set(ORACLE_KEYS))
    if unknown:
        raise ArgumentError(f"oracle has the key {unknown[0]!r}; expected {', '.join(ORACLE_KEYS)}")
    full = oracle.get("full_layers")
    params.oracle = 1
    layers = None
    if full is not None:
        if isinstance(full, (str, bytes)) or not isinstance(full, Sequence) or any(not isinstance(i, int) for i in full):
            raise ArgumentError(f"oracle['full_layers'] is {full!r}; expected a list of layer numbers")
        layers = ffi.new("int32_t[]", list(full))
        params.oracle, params.oracle_full_layers, params.n_oracle_full_layers = 2, layers, len(full)
    for key in ("block_size", "top_k_tokens", "window"):
        value = oracle.get(key, 0)
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise ArgumentError(f"oracle[{key!r}] is {value!r}; expected a positive integer")
        setattr(params, f"oracle_{key}", value)
    return layers
