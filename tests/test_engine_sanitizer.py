"""The C++ engine under AddressSanitizer: `pytest -m slow tests/test_engine_sanitizer.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("file", ["test_native.py", "test_stages.py", "test_round_gate.py"])
def test_nothing_is_read_or_written_outside_of_what_was_allocated(
    file: str, sanitized: Callable[..., CompletedProcess[str]]
) -> None:
    done = sanitized(HERE / file)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10000:]
