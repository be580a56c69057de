"""Synthetic quadratics with exact gradients plus noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from teleport_bench.activation import BLOCK
from teleport_bench.errors import UserError
from teleport_bench.native.calls import Call, Rows
from teleport_bench.native.normals import normals
from teleport_bench.native.quadratic import NativeQuadratic
from teleport_bench.problems.base import FleetProblem, Member, Problem, worlds_of
from teleport_bench.registry import PROBLEMS
from teleport_bench.seeds import by_step, generator

MU, LARGEST = 0.1, 1.0
"""The smallest and the largest curvature of the spectrum, unless given."""


@dataclass(frozen=True, eq=False)
class World:
    """f_i(x) = 1/2 (x - x*)^T H_i (x - x*) + v_i^T (x - x*) with sum_i v_i = 0, in float64.

    hessian: (n, 1) where H_i = h_i I, else (n, d, d); v: (n, d), gradients at x*; optimum: (d,).
    Up to a constant this is every set of quadratics whose mean is strictly convex, so that
    f(x) - f* = 1/2 (x - x*)^T H (x - x*) with H the mean of the H_i.
    """

    hessian: NDArray[np.float64]
    v: NDArray[np.float64]
    optimum: NDArray[np.float64]


@PROBLEMS.register("quadratic")
class Quadratic(Problem):
    """Quadratics of two families, noise N(0, sigma2/d I), start N(0, I) (assumed, not the paper's).

    "curvature": f_i = 1/2 ||A_i x - b_i||^2, A_i^2 = (i^2/n) I, b_i ~ N(0, zeta2/i^2 I), i = 1..n
    (Koloskova et al. 2020); the curvature grows with n.
    "spectrum": H_i = Q_i diag(mu .. L) Q_i^T, log-spaced (of one dimension L), with random
    rotations Q_i, and gradients at the optimum scaled so that (1/n) sum ||grad f_i(x*)||^2 = zeta2
    exactly.
    """

    def __init__(
        self,
        *,
        family: Literal["curvature", "spectrum"] = "spectrum",
        dim: PositiveInt = 50,
        zeta2: NonNegativeFloat = 1.0,
        sigma2: NonNegativeFloat = 1.0,
        mu: Annotated[float, Field(gt=0)] = MU,
        L: PositiveFloat = LARGEST,
    ) -> None:
        if mu > L:
            raise UserError(f"mu is the smallest and L the largest curvature, got mu={mu} > L={L}")
        # one that says what holds anyway does no harm: the settings of every run have all options
        for name, value, usual in (("mu", mu, MU), ("L", L, LARGEST)):
            if family == "curvature" and value != usual:
                raise UserError(
                    f'{name} = {value:g} is of family = "spectrum", and the curvature family has '
                    f"the curvatures i^2/n: leave {name} out, or take the other family"
                )
        self.family, self.dim, self.zeta2, self.sigma2 = family, dim, zeta2, sigma2
        self.mu, self.L = mu, L

    @property
    def n_params(self) -> int:
        return self.dim

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("objective_gap", "gradient_norm2")

    def check(self, n_nodes: int) -> None:
        if self.family == "spectrum" and n_nodes == 1 and self.zeta2 > 0:
            raise UserError(
                f"one node alone has no heterogeneity, got zeta2={self.zeta2}: set zeta2 = 0"
            )

    def describe(self, seed: int, n_nodes: int) -> dict[str, Any]:
        world = self.world(seed, n_nodes)
        return {
            "parameters": self.dim,
            "zeta2_at_optimum": float((world.v**2).sum(1).mean()),
        }

    def epochs(self, n_nodes: int, gradients: int) -> float:
        return gradients / n_nodes

    def operations(self) -> int:
        return self.dim * (3 if self.family == "curvature" else 2 * self.dim + 2)

    def drawn(self) -> int:
        return self.dim

    def memory(
        self, members: Sequence[Member], rows: int, device: torch.device, *, compiled: bool
    ) -> int:
        """The functions of all nodes in float64, once more in one array, and in float32; in torch,
        each row's Hessian and its products."""
        nodes = sum(n for _, n in worlds_of(members))
        of_node = self.dim * (1 if self.family == "curvature" else self.dim)
        return of_node * (
            (20 if device.type == "cpu" else 12) * nodes + (0 if compiled else 8 * rows)
        )

    def fleet(self, members: Sequence[Member], device: torch.device) -> FleetQuadratic:
        return FleetQuadratic(self, members, device)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - problems live as long as the process
    def world(self, seed: int, n_nodes: int) -> World:
        """The functions of all nodes, fixed by seed and n."""
        rng = generator(seed, "quadratic", family=self.family, nodes=n_nodes, dim=self.dim)
        if self.family == "curvature":
            i = np.arange(1, n_nodes + 1)[:, None]
            b = rng.standard_normal((n_nodes, self.dim)) * math.sqrt(self.zeta2) / i
            a = i / math.sqrt(n_nodes)
            optimum = (a * b).mean(0) / (a**2).mean()
            return World(a**2, a**2 * optimum - a * b, optimum)
        rotations = np.linalg.qr(rng.standard_normal((n_nodes, self.dim, self.dim)))[0]
        spectrum = np.geomspace(self.mu, self.L, self.dim) if self.dim > 1 else np.array([self.L])
        hessian = (rotations * spectrum) @ rotations.transpose(0, 2, 1)
        v = rng.standard_normal((n_nodes, self.dim))
        v -= v.mean(0)
        square = (v**2).sum(1).mean()
        v *= math.sqrt(self.zeta2 / square) if square > 0 else 0.0
        return World(hessian, v, np.zeros(self.dim))


class FleetQuadratic(FleetProblem):
    """Quadratics on stacked rows; nodes are counted through all worlds."""

    in_order = False

    def __init__(self, problem: Quadratic, members: Sequence[Member], device: torch.device) -> None:
        self.problem, self.members, self.device = problem, members, device
        self._native: NativeQuadratic | None = None
        worlds = [problem.world(*world) for world in worlds_of(members)]

        def stack(parts: list[NDArray[np.float64]]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(device)

        self.hessian = stack([w.hessian for w in worlds]).float()
        # grad f_i(x) = H_i x - h_i with h_i = H_i x* - v_i, subtracted in float64 here, once
        self.linear = stack([_times(w.hessian, w.optimum) - w.v for w in worlds]).float()
        self.optimum = torch.stack([torch.from_numpy(w.optimum) for w in worlds]).to(device)
        if len(self.hessian) != (n := sum(n for _, n in worlds_of(members))):
            raise UserError(f"a world has a function a node, {n} of them, got {len(self.hessian)}")
        self.mean_hessian = torch.stack([torch.from_numpy(w.hessian.mean(0)) for w in worlds]).to(
            device
        )

    def initial(self, seed: int) -> Tensor:
        x = generator(seed, "init", dim=self.problem.dim).standard_normal(self.problem.dim)
        return torch.from_numpy(x.astype(np.float32)).to(self.device)

    def draw(self, member: int, block: int, holders: NDArray[np.int64]) -> NDArray[np.float32]:
        m = self.members[member]
        shape = (BLOCK, holders.shape[1], self.problem.dim)
        if not self.problem.sigma2:
            return np.zeros((len(holders), *shape[1:]), dtype=np.float32)
        scale = math.sqrt(self.problem.sigma2 / self.problem.dim)
        compiled = self._native is not None
        return by_step(
            lambda rng: normals(rng, shape, scale, compiled=compiled),
            len(holders) // BLOCK,
            m.seed,
            "noise",
            nodes=m.nodes,
            active=m.active,
            block=block,
        )

    def gradient(self, x: Tensor, node: Tensor, data: Tensor) -> Tensor:
        exact: Tensor = _times(self.hessian[node], x) - self.linear[node]
        return exact + data

    def compile(self, rows: Rows) -> bool:
        self._rows, self._native = rows, NativeQuadratic(self.hessian, self.linear)
        return True

    def call(self, x: Tensor, grad: Tensor, node: Tensor, data: Tensor) -> Call:
        assert self._native is not None
        return self._native.gradient(self._rows, x, grad, node, data)

    def evaluate(self, x: Tensor, mean: Tensor, run: Tensor, world: Tensor) -> dict[str, Tensor]:
        away = mean.double() - self.optimum[world]
        gradient = _times(self.mean_hessian[world], away)
        return {
            "objective_gap": 0.5 * (away * gradient).sum(1),
            "gradient_norm2": (gradient**2).sum(1),
        }


def _times(hessian: Any, x: Any) -> Any:
    """H_i x_i for each i: hessian (m, 1) or (m, d, d), x (m, d) or one (d,) for all."""
    if hessian.ndim == 2:
        return hessian * x
    return (hessian * x[..., None, :]).sum(-1)
