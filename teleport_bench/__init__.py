"""teleport-bench: a benchmark suite for decentralized learning.

    import teleport_bench as tb
    spec = tb.RunSpec(algorithm="teleportation", nodes=25, active=8, problem="quadratic",
                      lr=0.1, rounds=200)
    record = tb.run(spec)

The names below load on first use, so that `import teleport_bench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teleport_bench.algorithms import Algorithm
    from teleport_bench.data import Dataset
    from teleport_bench.errors import UserError
    from teleport_bench.executor import run, run_fleet
    from teleport_bench.network import Network, simulate
    from teleport_bench.plugins import load_plugin
    from teleport_bench.problems import FleetProblem, Problem
    from teleport_bench.record import Record
    from teleport_bench.registry import (
        ALGORITHMS,
        DATA,
        MODELS,
        PARTITIONS,
        PROBLEMS,
        SCHEDULES,
        TOPOLOGIES,
    )
    from teleport_bench.spec import RunSpec
    from teleport_bench.suite import Suite
    from teleport_bench.topologies import Topology, topology

_HOME = {
    "ALGORITHMS": "registry",
    "DATA": "registry",
    "MODELS": "registry",
    "PARTITIONS": "registry",
    "PROBLEMS": "registry",
    "SCHEDULES": "registry",
    "TOPOLOGIES": "registry",
    "Algorithm": "algorithms",
    "Dataset": "data",
    "FleetProblem": "problems",
    "Network": "network",
    "Problem": "problems",
    "Record": "record",
    "RunSpec": "spec",
    "Suite": "suite",
    "Topology": "topologies",
    "UserError": "errors",
    "load_plugin": "plugins",
    "run": "executor",
    "run_fleet": "executor",
    "simulate": "network",
    "topology": "topologies",
}

__all__ = [
    "ALGORITHMS",
    "DATA",
    "MODELS",
    "PARTITIONS",
    "PROBLEMS",
    "SCHEDULES",
    "TOPOLOGIES",
    "Algorithm",
    "Dataset",
    "FleetProblem",
    "Network",
    "Problem",
    "Record",
    "RunSpec",
    "Suite",
    "Topology",
    "UserError",
    "load_plugin",
    "run",
    "run_fleet",
    "simulate",
    "topology",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'teleport_bench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"teleport_bench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
