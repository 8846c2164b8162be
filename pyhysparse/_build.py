"""Writes the C source of the cffi module `pyhysparse._hysparse` (API mode, stable ABI) from `runtime/include/hysparse.h`.

Run by CMake: `python _build.py HEADER OUT.c`. The header is the only description of the C API: what stands between its lines
`// BEGIN cdef` and `// END cdef` is the cdef, so a wrong signature fails at compile time and nothing is typed twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

# Python functions that C calls; their bodies are in pyhysparse/_ffi.py. The void pointer is an ffi handle of the Python callable.
CALLBACKS = """
extern "Python" bool hs_py_progress(float fraction, void * user);
extern "Python" bool hs_py_quantize_progress(int64_t done, int64_t total, const char * tensor, void * user);
extern "Python" bool hs_py_capture(const char * name, const int64_t * ne, const float * data, void * user);
extern "Python" void hs_py_log(int32_t level, const char * text, void * user);
"""


def cdef_of(header: str) -> str:
    """The declarations between the two marker lines."""
    begin, end = "// BEGIN cdef", "// END cdef"
    if header.count(begin) != 1 or header.count(end) != 1:
        raise SystemExit(f"the header must hold {begin!r} and {end!r} once each")
    return header.split(begin)[1].split(end)[0]


def main() -> None:
    header, out = Path(sys.argv[1]), Path(sys.argv[2])
    ffi = FFI()
    ffi.cdef(cdef_of(header.read_text(encoding="utf-8")) + CALLBACKS)
    ffi.set_source("pyhysparse._hysparse", '#include "hysparse.h"', py_limited_api=True)
    ffi.emit_c_code(str(out))


if __name__ == "__main__":
    main()
