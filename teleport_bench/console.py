"""Standard output and error that fit any terminal, and that no run depends on."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

_NOWHERE = Path(os.devnull)


class Stream:
    """A text stream that never raises.

    What its encoding lacks is written as an escape. From the first write that fails on, as the
    disk is full or the reader left, nothing is written any more.

    error: why the first write failed; None while all is well.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._errors = getattr(stream, "errors", None)
        self.error: Exception | None = None
        self._show_unencodable_as("backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def release(self) -> TextIO:
        """The stream itself, flushed and as it was."""
        self.flush()
        self._show_unencodable_as(self._errors)
        return self._stream

    def _show_unencodable_as(self, errors: str | None) -> None:
        stream = self._stream
        if isinstance(stream, io.TextIOWrapper):
            self._attempt(lambda: stream.reconfigure(errors=errors))  # it flushes

    def _attempt(self, do: Callable[[], object]) -> None:
        if self.error:
            return
        try:
            do()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.error = error
            # nowhere goes what is still buffered, which the end of the process would try again
            with (
                contextlib.suppress(OSError, ValueError, AttributeError),
                _NOWHERE.open("wb") as nowhere,
            ):
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def unfailing() -> Iterator[Stream]:
    """Make standard output and error such streams in here; gives that of the output.

    One that the process was started without (`2>&-`) is made first, leading nowhere: the next file
    opened would get its number, and what is written to it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    nowhere = [_NOWHERE.open("w", encoding="utf-8") for s in _standard() if s is None]
    before = _standard()
    with contextlib.ExitStack() as stack:
        for file in nowhere:
            stack.enter_context(file)
        out, err = (Stream(s or nowhere.pop()) for s in before)
        sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
        try:
            yield out
        finally:
            err.release()
            out.release()  # the first one that was changed, should both be the same
            sys.stdout, sys.stderr = before


def _standard() -> tuple[TextIO, TextIO]:
    return sys.stdout, sys.stderr
