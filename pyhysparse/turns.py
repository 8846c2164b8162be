"""Who may use the default conversation of an LLM: one generation at a time, threads wait their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyhysparse.errors import BusyError

__all__ = ["Turn", "Turns"]


class Turn:
    """The right to use the conversation, from a generation's first token to its last."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()


class Turns:
    """Hands out turns.

    A call of another thread waits until the present turn ends (or its thread is gone). A call of the same thread takes over: a
    generation left half-way in a variable must not lock its own thread out; if it is resumed later, it gets BusyError.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: Turn | None = None

    def take(self) -> Turn:
        turn = Turn()
        with self._changed:
            while self._owner is not None and self._owner.thread is not turn.thread and self._owner.thread.is_alive():
                self._changed.wait(timeout=0.2)  # a thread that dies tells nobody
            self._owner = turn
        return turn

    def resume(self, turn: Turn) -> None:
        """Called whenever a generation goes on; it may have moved to another thread."""
        with self._changed:
            if self._owner is not turn:
                raise BusyError("the conversation was used by another call since this generation began")
            turn.thread = threading.current_thread()

    def release(self, turn: Turn) -> None:
        with self._changed:
            if self._owner is turn:
                self._owner = None
                self._changed.notify_all()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A turn for one call."""
        turn = self.take()
        try:
            yield
        finally:
            self.release(turn)
