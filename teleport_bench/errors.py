"""Errors that a user can act on: their message is shown, their traceback is not."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a file system says that it takes no more."""


class UserError(ValueError):
    """A mistake in what the user gave; the message says what was got, expected, and what to do."""


class ComponentError(UserError):
    """A component of the user's own that does not give what it must, for any choice of options."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'ring'? Known: ring, star, torus`; no guess where none is near."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else "."
    return f"{guess} Known: {', '.join(known)}"


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
