"""Whether runs fit into memory."""

from __future__ import annotations

import contextlib
import gc
import math
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from teleport_bench.activation import BLOCK, block_bytes, drawn_ahead
from teleport_bench.algorithms import Rate
from teleport_bench.native import Buffers
from teleport_bench.spec import RunSpec
from teleport_bench.topologies import AnyTopology, Topology
from teleport_bench.topologies.drawn import entries

CPU = torch.device("cpu")


class NoRoomError(MemoryError):
    """Runs need more memory than there is."""


def needed(specs: Sequence[RunSpec], device: torch.device = CPU, *, compiled: bool = False) -> int:
    """Bytes that a fleet takes on the device while it runs, about, data sets that are read already
    left out. compiled: as in `Fleet`.

    Counted are (rows, P) tensors (see `_vectors`; one more while models are scored) and the mean
    models, the models of all nodes where they are stored there, some blocks of random choices,
    the matrices of the rounds, and what the problem says of its data and activations. Not known,
    and so left out, is what torch, its libraries and allocators take for themselves, and what
    operations of torch in an algorithm do. On two cores fleets of 0.1 to 1 GB took 0.5 to 1.4 times
    as much.
    """
    spec, rows = specs[0], sum(spec.n_active for spec in specs)
    problem, members = spec.build_problem(), list(dict.fromkeys(spec.member for spec in specs))
    vectors = rows * (_vectors(spec) + 1) + len(specs)
    if spec.storage == "nodes":
        vectors += sum(spec.nodes for spec in specs)
    numbers = problem.drawn() * spec.build_algorithm().local_steps
    block = block_bytes(numbers, sum(m.active for m in members))
    # on the host the next blocks lie in parts and as a whole, beside the one that rounds read
    ahead = math.prod(drawn_ahead(block, torch.get_num_threads()))
    ahead = min(ahead, -(-spec.rounds // BLOCK) - 1)
    copies = max(2, 1 + 2 * ahead) if device.type == "cpu" else 1
    choices = copies * block + 8 * BLOCK * rows
    topologies = [spec.build_topology() for spec in specs]
    matrices = _matrices(topologies, spec.rounds, copies)
    own = problem.memory(members, rows, device, compiled=compiled)
    return 4 * vectors * problem.n_params + choices + matrices + own


def _matrices(topologies: Sequence[AnyTopology], rounds: int, copies: int) -> int:
    """Of the rounds' graphs: those of a period are kept, those that are drawn lie in blocks, of
    which there are as many as of other choices."""
    rows = sum(graphs.n_nodes for graphs in topologies)
    periodic = [graphs for graphs in topologies if isinstance(graphs, Topology)]
    if len(periodic) < len(topologies):
        return copies * BLOCK * (12 * sum(map(entries, topologies)) + 8 * rows)
    rounds = min(rounds, math.lcm(*(t.period for t in periodic)))
    kept = sum(W.nnz * rounds // t.period for t in periodic for W in t.mixings)
    return 20 * kept + 24 * rows * rounds


def _vectors(spec: RunSpec) -> int:
    """(rows, P) tensors that a round of the algorithm has at a time, at most: with the state that
    its block began with. Found by rounds (the first may differ) on single numbers."""
    algorithm, count = spec.build_algorithm(), _Counted(spec.momentum)
    with contextlib.suppress(Exception):  # one of a user's own may need more than that
        state = algorithm.start(count.gradient(), momentum=spec.momentum > 0)
        state = {name: count.gradient() for name in state}
        began = algorithm.step(state, count)
        state = algorithm.step(began, count)
        algorithm.step(state, count)
    return len(count.places)


class _Counted:
    """A `Round` whose results are numbers without a meaning, each in a place of its own."""

    lr, t = Rate(), 0

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.places: set[int] = set()
        self._buffers = Buffers(1, 1)

    def gradient(self, *_: object) -> Tensor:
        taken = self._buffers.take()
        self.places.add(taken.data_ptr())
        return taken

    sgd_step = sgd_mix = mix = combine = gradient

    def fetch(self, x: Tensor) -> Tensor:
        return x

    def decayed(self, grad: Tensor, x: Tensor) -> Tensor:
        return grad


def free(device: torch.device) -> int:
    """Bytes that can still be taken on the device: of its memory, and for this process."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return min(_limits(), default=2**63)


def check(specs: Sequence[RunSpec], device: torch.device, *, compiled: bool) -> None:
    """NoRoomError where the runs do not fit; a single run, which cannot be split, is tried unless
    half of what it needs, which is an estimate, does not fit either."""
    need = needed(specs, device, compiled=compiled) // (1 if len(specs) > 1 else 2)
    if need <= free(device):
        return
    gc.collect()  # fleets refer to themselves
    if need > free(device):
        raise NoRoomError("it does not fit")


def shortage(specs: Sequence[RunSpec], device: torch.device, *, compiled: bool) -> str:
    """In words."""
    need = needed(specs, device, compiled=compiled)
    return (
        f"needs about {need / 2**20:.4g} MiB and has {free(device) / 2**20:.4g} MiB on {device}; "
        "take fewer active nodes, a smaller model or a smaller batch"
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
