"""Sparse mixing matrices on rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixing:
    """A sparse square matrix W that mixes rows: row i receives, `x_i <- sum_j W[i, j] x_j`.

    Stored by rows (CSR). The neighbours of a row stand in ascending column order, which is also the
    order in which every op adds them up, so that results do not depend on the backend.

    indptr: (n + 1,) int64; row i owns the entries indptr[i] .. indptr[i + 1] - 1.
    indices: (nnz,) int64, the column of each entry, strictly ascending within a row.
    weights: (nnz,) float64; ops round them to the dtype they accumulate in.

    Source of the convention: Koloskova et al. 2020, with W acting from the left.
    """

    indptr: Tensor
    indices: Tensor
    weights: Tensor
    _slots: dict[torch.dtype, list[Slot]] = field(default_factory=dict, repr=False)
    _plans: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dense(cls, W: Tensor) -> Mixing:
        """The non-zero entries of W, an (n, n) matrix of finite numbers."""
        if W.ndim != 2 or W.shape[0] != W.shape[1]:
            raise ValueError(f"a mixing matrix is square, got shape {tuple(W.shape)}")
        row, col = W.nonzero(as_tuple=True)
        return cls.from_edges(W.shape[0], row, col, W[row, col])

    @classmethod
    def from_edges(cls, n: int, row: Tensor, col: Tensor, weight: Tensor) -> Mixing:
        """W[row, col] = weight, in any order; each entry named once. row, col, weight: (nnz,)."""
        row, col = torch.as_tensor(row).long(), torch.as_tensor(col).long()
        weight = torch.as_tensor(weight).double()
        if not row.shape == col.shape == weight.shape or row.ndim != 1:
            raise ValueError(
                "row, col and weight must be vectors of one length, got shapes "
                f"{tuple(row.shape)}, {tuple(col.shape)} and {tuple(weight.shape)}"
            )
        for name, index in (("row", row), ("column", col)):
            if index.numel() and (index.min() < 0 or index.max() >= n):
                bad = index[(index < 0) | (index >= n)][0].item()
                raise ValueError(f"{name} {bad} is out of range, expected 0..{n - 1}")
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("mixing weights must be finite, got NaN or infinity")
        key, order = torch.sort(row * n + col)
        if bool((key[1:] == key[:-1]).any()):
            twice = int(key[1:][key[1:] == key[:-1]][0])
            raise ValueError(f"entry ({twice // n}, {twice % n}) is given more than once")
        indptr = torch.zeros(n + 1, dtype=torch.int64, device=row.device)
        indptr[1:] = torch.bincount(row, minlength=n).cumsum(0)
        return cls(indptr, col[order], weight[order])

    @classmethod
    def identity(cls, n: int) -> Mixing:
        """W = I: every row keeps its own value."""
        i = torch.arange(n)
        return cls.from_edges(n, i, i, torch.ones(n))

    @property
    def n_rows(self) -> int:
        return self.indptr.numel() - 1

    @property
    def nnz(self) -> int:
        return self.indices.numel()

    @property
    def device(self) -> torch.device:
        return self.indices.device

    @cached_property
    def degrees(self) -> Tensor:
        """(n,) number of entries a row, its own included."""
        return self.indptr.diff()

    @cached_property
    def rows(self) -> Tensor:
        """(nnz,) the row of each entry."""
        return torch.repeat_interleave(
            torch.arange(self.n_rows, device=self.device), self.degrees, output_size=self.nnz
        )

    def dense(self) -> Tensor:
        """W as an (n, n) float64 tensor."""
        W = torch.zeros(self.n_rows, self.n_rows, dtype=torch.float64, device=self.device)
        W[self.rows, self.indices] = self.weights
        return W

    def to(self, device: torch.device | str) -> Mixing:
        """The same matrix on another device; itself when it is there already."""
        device = torch.device(device)
        if self.device == device:
            return self
        return Mixing(self.indptr.to(device), self.indices.to(device), self.weights.to(device))

    def plan(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(nnz,) weights in the given dtype, and (n,) the leader of each row: the first of the
        consecutive rows that have the same entries, and so the same result; made once."""
        if dtype not in self._plans:
            weights = self.weights.to(dtype).contiguous()
            n, entry = self.n_rows, torch.arange(self.nnz, device=self.device)
            degree = self.degrees[self.rows]
            above = (entry - degree).clamp_(
                min=0
            )  # the same entry of the row above, if it is alike
            differs = (self.indices != self.indices[above]) | (weights != weights[above])
            same = torch.zeros(n, dtype=torch.bool, device=self.device)
            same[1:] = self.degrees[1:] == self.degrees[:-1]
            same &= torch.bincount(self.rows[differs], minlength=n) == 0
            row = torch.arange(n, device=self.device)
            leader = torch.where(same, 0, row).cummax(0).values if n else row
            self._plans[dtype] = weights, leader
        return self._plans[dtype]

    def slots(self, dtype: torch.dtype) -> list[Slot]:
        """The matrix cut by position in the row: slot d holds the d-th neighbour of every row that
        has one. Its weights are (rows, 1) in the given dtype, made once."""
        if dtype not in self._slots:
            starts, degrees = self.indptr[:-1], self.degrees
            slots = []
            for d in range(int(degrees.max()) if self.n_rows else 0):
                has = (degrees > d).nonzero().squeeze(1)
                entry = starts[has] + d
                full = has.numel() == self.n_rows
                weights = self.weights[entry].to(dtype).unsqueeze(1)
                slots.append(Slot(None if full else has, self.indices[entry], weights))
            self._slots[dtype] = slots
        return self._slots[dtype]


@dataclass(frozen=True, eq=False)
class Slot:
    """One neighbour position: row rows[m] adds weights[m] * x[columns[m]]; rows None means all."""

    rows: Tensor | None
    columns: Tensor
    weights: Tensor


def block_diag(blocks: Sequence[Mixing]) -> Mixing:
    """The block-diagonal matrix of the blocks, in order: independent groups of rows."""
    if not blocks:
        raise ValueError("block_diag needs at least one block, got none")
    row_offset, entry_offset = 0, 0
    indptr, indices = [blocks[0].indptr[:1]], []
    for block in blocks:
        indptr.append(block.indptr[1:] + entry_offset)
        indices.append(block.indices + row_offset)
        row_offset += block.n_rows
        entry_offset += block.nnz
    return Mixing(
        torch.cat(indptr), torch.cat(indices), torch.cat([block.weights for block in blocks])
    )
