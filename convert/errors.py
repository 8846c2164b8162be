"""The one exception of the converter."""
from __future__ import annotations


class ConvertError(ValueError):
    """A checkpoint that cannot be converted. The text names the file, field or tensor, the value found and the value expected."""


def mismatch(place: str, found: object, expected: str) -> ConvertError:
    """ConvertError in the usual form: where, what was found, what was expected."""
    return ConvertError(f"{place}: found {found}, expected {expected}")
