"""The C++ kernels under AddressSanitizer: `pytest -m slow tests/kernels/test_sanitizer.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow

OUTSIDE = """
import ctypes
import torch
import teleport_kernels as tk
from teleport_kernels import cpu

def test_a_read_past_the_end():
    assert cpu.available()
    x = torch.ones(3, 500)
    call = cpu.prepare(x, tk.Mixing.identity(3), torch.empty(3, 500))
    call.width = 503
    cpu.function()(ctypes.byref(call))
"""


@pytest.mark.parametrize("file", ["test_cpu.py", "test_ops.py", "test_gate.py"])
def test_nothing_is_read_or_written_outside_of_what_was_allocated(file, sanitized):
    done = sanitized(HERE / file)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[:10_000]


def test_the_sanitizer_sees_torch_s_memory(sanitized, tmp_path):
    (tmp_path / "test_outside.py").write_text(OUTSIDE)
    done = sanitized(tmp_path / "test_outside.py", f"--rootdir={tmp_path}")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
