"""The compiled cffi module. Its contents are described by runtime/include/hysparse.h."""

from typing import Any

ffi: Any
lib: Any
