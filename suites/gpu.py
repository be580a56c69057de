"""What a CUDA device can show, most important first, in nine minutes: `make gpu`.

    python3 suites/gpu.py OUT

Where TELEPORT_BENCH_DATA names a folder with the image data, the paper's suites on Fashion-MNIST
and CIFAR-10 follow in full: hours. Stop them when you like; the same command goes on where it was.

Nothing is installed: the packages of this Python are taken as they are, and the checkout is put on
its path. Each step has its time and leaves its log and its results in OUT, whatever follows. Exit
code 0: all steps passed; 1: one did not; 2: there is no CUDA device.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Step(NamedTuple):
    """A program, its time in seconds, and what it is told beside its arguments."""

    name: str
    seconds: int
    arguments: list[str]
    environment: dict[str, str] = {}


def steps(out: Path) -> list[Step]:
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # the tests of the kernels need no package of the benchmark suite
    tests = [*pytest, "--confcutdir=tests/kernels", "-W", "default"]

    def bench(name: str, seconds: int, file: str, *more: str) -> Step:
        # pytest-benchmark writes its file at the end: skip what is left in time for it
        limits = ["--device=cuda", "-W", "default", f"--seconds={seconds - 30}", *more]
        json = f"--benchmark-json={out / name}.json"
        return Step(name, seconds, [*pytest, f"suites/bench/{file}", *limits, json])

    return [
        Step("device", 90, [*tests, "-m", "gpu", "tests/kernels/test_gpu.py"]),
        bench("kernels", 150, "test_kernels.py", "-k", "teleport_kernels"),
        Step("graphs", 40, [*pytest, "-W", "default", "-m", "gpu", "tests/test_graphs.py"]),
        bench("rounds", 100, "test_rounds.py"),
        Step("properties", 70, [*tests, "tests/kernels/test_ops.py"], {"TEST_DEVICE": "cuda"}),
        bench("rivals", 80, "test_kernels.py", "-k", "not teleport_kernels"),
        *(paper(out, name) for name in ("fashion_mnist", "cifar10") if at_hand(name)),
    ]


def paper(out: Path, name: str) -> Step:
    command = ["-m", "teleport_bench", "run", f"paper/{name}", "--device=cuda", f"--out={out}"]
    return Step(name, 12 * 3600, command)


def at_hand(data: str) -> bool:
    folder = os.environ.get("TELEPORT_BENCH_DATA")
    return folder is not None and (Path(folder) / data).is_dir()


def has_device() -> bool:
    probe = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return not subprocess.run([sys.executable, "-c", probe], check=False).returncode


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: gpu.py OUT, a folder for logs and results", file=sys.stderr)
        return 2
    if not has_device():
        print("no CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    out = Path(arguments[0]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    failed = []
    for step in steps(out):
        began = time.monotonic()
        log = out / f"{step.name}.log"
        with log.open("w") as file:
            try:
                code: int | str = subprocess.run(
                    [sys.executable, *step.arguments],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": paths} | step.environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=step.seconds,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"stopped after {step.seconds} s"
        last = (log.read_text().strip().splitlines() or [""])[-1]
        print(f"{step.name}: {code} after {time.monotonic() - began:.0f} s: {last}", flush=True)
        if code != 0:
            failed.append(step.name)
    print(f"logs and results: {out}" + (f"; not passed: {', '.join(failed)}" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
