"""Compile every Triton kernel for devices that are not here, and print what the machine code holds.

Run as a program, without TRITON_INTERPRET, in a process of its own, with the names of targets (all
without any): one JSON object a line; or with --table for results/kernels/compiled.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from teleport_kernels import triton_mix

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp32", "fp64": "fp64"}
"""Row type: accumulation type."""
OPS = {
    "gossip_mix": {},
    "teleport_mix": {"HAS_SOURCE": True, "HAS_TARGET": True},
    "sgd_mix": {"HAS_GRAD": True, "HAS_MOMENTUM": True, "BETA": 0.9, "DECAY": 1e-4},
    "consensus": {},
}
ROWS = (8, 64, 1024)


def variant(op: str, dtype: str, k: int) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """(kernel, pointer and size types, constants) of an op on k rows of a graph of degree 3."""
    acc = DTYPES[dtype]
    itemsize = 8 if acc == "fp64" else 4
    align = 16 // {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}[dtype]
    if op == "consensus":
        kernel = triton_mix.consensus_kernel
        pointers = {"x": dtype, "starts": "i64", "mean": acc, "squares": acc}
        sizes = ("x_stride", "width", "out_stride")
        block = triton_mix.consensus_block(16 // align)
        return kernel, _types(pointers, sizes), {"ALIGN": align, "BLOCK": block, "UNROLL": 4}
    kernel = triton_mix.mix_kernel
    pointers = dict.fromkeys(("x", "grad", "momentum", "out"), dtype)
    pointers |= dict.fromkeys(("lr", "scratch", "weights"), acc)
    pointers |= dict.fromkeys(("indptr", "indices", "runs", "source", "target"), "i64")
    c = triton_mix.configuration(k, k, itemsize)
    constants = {"BETA": 0.0, "DECAY": 0.0, "NESTEROV": False, "ALIGN": align}
    constants |= dict.fromkeys(("HAS_GRAD", "HAS_MOMENTUM", "HAS_SOURCE", "HAS_TARGET"), False)
    constants |= {"BLOCK": c.block, "ROWS": c.rows, "UNROLL": c.unroll} | OPS[op]
    return kernel, _types(pointers, triton_mix.SIZES), constants


def _types(pointers: dict[str, str], sizes: tuple[str, ...]) -> dict[str, str]:
    return {name: f"*{type_}" for name, type_ in pointers.items()} | dict.fromkeys(sizes, "i32")


def compiled(op: str, dtype: str, k: int, target: GPUTarget) -> Any:
    kernel, types, constants = variant(op, dtype, k)
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*")
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, values, aligned)
    return triton.compile(
        source,
        target=target,
        options={"num_warps": triton_mix.THREADS // target.warp_size, "enable_fp_fusion": False},
    )


def row_accesses(op: str, dtype: str, k: int) -> int:
    """16-byte accesses to rows of x, grad, momentum, out, mean and scratch, at least."""
    _, types, c = variant(op, dtype, k)
    size = {"*fp32": 4, "*fp64": 8, "*bf16": 2, "*fp16": 2}
    each = c["BLOCK"] * c.get("ROWS", 1) // triton_mix.THREADS
    row, total = size[types["x"]], size[types["mean" if op == "consensus" else "lr"]]

    def accesses(itemsize: int) -> int:
        return -(-each * itemsize // 16)

    if op == "consensus":  # both passes, mean and squares
        return 2 * c["UNROLL"] * accesses(row) + 2 * accesses(total)
    if op == "sgd_mix":  # x, grad, momentum read and written, scratch written and read, out
        return 5 * accesses(row) + (1 + c["UNROLL"]) * accesses(total)
    return (1 + c["UNROLL"]) * accesses(row)


def nvidia(kernel: Any, arch: int) -> dict[str, int]:
    ptx = kernel.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        command = [str(_ptxas()), "-v", f"--gpu-name={name}", str(file), "-o", f"{folder}/cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, report))

    return {
        "fused": len(re.findall(r"\bfma\.rn\.(?:f32|f64|f16|bf16)", ptx)),
        "wide": len(re.findall(r"\b(?:ld|st)\.global[^;]*\.(?:v4\.[bf]32|v2\.[bf]64)", ptx)),
        "registers": number(r"Used (\d+) registers"),
        "spills": number(r"(\d+) bytes spill"),
        "shared": kernel.metadata.shared,
    }


def _ptxas() -> Path:
    """The newest assembler that Triton brought: of two, the one for newer devices."""
    folder = Path(triton.backends.nvidia.__path__[0]) / "bin"
    newest = folder / "ptxas-blackwell"
    return newest if newest.exists() else folder / "ptxas"


def amd(kernel: Any) -> dict[str, int]:
    text = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        return sum(int(n) for n in re.findall(rf"\.{name}:\s*(\d+)", text))

    return {
        "fused": len(re.findall(r"\bv_(?:pk_)?(?:fma|fmac|mad|mac)_f(?:16|32|64)", text)),
        "wide": len(re.findall(r"\b(?:global|buffer)_(?:load|store)_dwordx4", text)),
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "shared": kernel.metadata.shared,
    }


def facts(names: list[str]) -> Iterator[dict[str, Any]]:
    for op in OPS:
        for dtype in DTYPES:
            for k in ROWS if op != "consensus" else ROWS[:1]:
                for name in names or TARGETS:
                    target = TARGETS[name]
                    kernel = compiled(op, dtype, k, target)
                    found = nvidia(kernel, target.arch) if target.backend == "cuda" else amd(kernel)
                    row = {"op": op, "dtype": dtype, "rows": k, "target": name}
                    yield row | {"row_accesses": row_accesses(op, dtype, k)} | found


def table() -> str:
    """Registers a thread by target, a line each op, dtype and number of rows."""
    from tabulate import tabulate

    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in facts([]):
        key = (row["op"], row["dtype"], row["rows"])
        lines.setdefault(key, {})[row["target"]] = f"{row['registers']}"
    body = [[*key, *(line[name] for name in TARGETS)] for key, line in lines.items()]
    header = ["op", "dtype", "rows", *TARGETS]
    return f"""# What the kernels compile to

Registers a thread, by Triton {triton.__version__}, for devices that were not there. A program has
{triton_mix.THREADS} threads. Everywhere: rows are read and written 16 bytes at a time, no register
spills, no multiply-add in mixing. Made by `python tests/kernels/compile_lane.py --table`; the tests
assert what stands here, registers up to 128.

{tabulate(body, header, tablefmt="pipe")}
"""


def main(arguments: list[str]) -> None:
    if arguments == ["--table"]:
        print(table(), end="")
        return
    for row in facts(arguments):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
