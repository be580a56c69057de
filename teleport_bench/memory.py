"""Whether runs fit into memory."""

from __future__ import annotations

import contextlib
import gc
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from teleport_bench.activation import BLOCK
from teleport_bench.spec import RunSpec


class NoRoomError(MemoryError):
    """Runs need more memory than there is."""


def needed(specs: Sequence[RunSpec]) -> int:
    """Bytes that a fleet takes at least: parameters, gradients, what is mixed, momentum, the models
    of all nodes where they are stored there, and two blocks of random choices. Data, activations
    and what an algorithm keeps besides come on top."""
    total = 0
    drawn: dict[object, int] = {}  # runs that share their random choices draw them once
    for spec in specs:
        problem = spec.build_problem()
        rows = spec.n_active * (4 if spec.momentum else 3)
        rows += spec.nodes if spec.storage == "nodes" else 0
        total += 4 * rows * problem.n_params
        share = spec.share and (spec.share.first, spec.share.among)
        member = spec.seed, spec.nodes, spec.n_active, share
        drawn[member] = (
            4 * 2 * BLOCK * spec.n_active * problem.drawn() * spec.build_algorithm().local_steps
        )
    return total + sum(drawn.values())


def free(device: torch.device) -> int:
    """Bytes that can still be taken on the device: of its memory, and for this process."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return min(_limits(), default=2**63)


def check(specs: Sequence[RunSpec], device: torch.device) -> None:
    """NoRoomError where the runs cannot fit."""
    if needed(specs) <= free(device):
        return
    gc.collect()  # fleets refer to themselves
    if needed(specs) > free(device):
        raise NoRoomError("it does not fit")


def shortage(specs: Sequence[RunSpec], device: torch.device) -> str:
    """In words."""
    return (
        f"needs at least {needed(specs) / 2**20:.4g} MiB and has {free(device) / 2**20:.4g} MiB on "
        f"{device}; take fewer active nodes, a smaller model or a smaller batch"
    )


def is_shortage(error: Exception) -> bool:
    """Whether there was no memory: torch has no one type for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _limits() -> Iterator[int]:
    """What the machine, its container and the process's own limit leave; each where it is known."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        yield 1024 * _table(Path("/proc/meminfo"))["MemAvailable"]
    groups = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, KeyError, ValueError):  # what is cached there can be dropped
        used = _table(groups / "memory.stat")["anon"]
        yield int((groups / "memory.max").read_text()) - used
    with contextlib.suppress(OSError, KeyError, ValueError):
        used = _table(groups / "memory" / "memory.stat")["total_rss"]
        yield int((groups / "memory" / "memory.limit_in_bytes").read_text()) - used
    with contextlib.suppress(OSError, ValueError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            yield limit - pages * resource.getpagesize()


def _table(path: Path) -> dict[str, int]:
    lines = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}
