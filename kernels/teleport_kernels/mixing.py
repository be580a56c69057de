"""Sparse mixing matrices on rows."""

from __future__ import annotations

import functools
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

    # What the kernels read, made once: time-varying schedules then switch matrices for nothing.
    weights32: Tensor = field(init=False, repr=False)
    """(nnz,) the weights in float32."""
    runs: Tensor = field(init=False, repr=False)
    """(r + 1,) int64: rows runs[i] .. runs[i + 1] - 1 have the same entries, and so one result."""
    blocks: Tensor = field(init=False, repr=False)
    """(b + 1,) int64: no entry leaves rows and columns blocks[i] .. blocks[i + 1] - 1, and no
    smaller range is as closed: the runs of a fleet, each on its own."""
    _slots: dict[torch.dtype, list[Slot]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        set_ = functools.partial(object.__setattr__, self)
        set_("weights32", self.weights.float())
        set_("runs", self._runs())
        set_("blocks", self._blocks())

    @classmethod
    def from_dense(cls, W: Tensor) -> Mixing:
        """The non-zero entries of W, an (n, n) matrix of finite numbers."""
        W = torch.as_tensor(W)
        if W.ndim != 2 or W.shape[0] != W.shape[1]:
            raise ValueError(f"a mixing matrix is square, got shape {tuple(W.shape)}")
        row, col = W.nonzero(as_tuple=True)
        return cls.from_edges(W.shape[0], row, col, W[row, col])

    @classmethod
    def from_edges(cls, n: int, row: Tensor, col: Tensor, weight: Tensor) -> Mixing:
        """W[row, col] = weight, in any order; each entry named once. row, col, weight: (nnz,)."""
        row, col, weight = (torch.as_tensor(part) for part in (row, col, weight))
        if n < 0:
            raise ValueError(f"a mixing matrix has 0 rows or more, got {n}")
        if not row.shape == col.shape == weight.shape or row.ndim != 1:
            raise ValueError(
                "row, col and weight must be vectors of one length, got shapes "
                f"{tuple(row.shape)}, {tuple(col.shape)} and {tuple(weight.shape)}"
            )
        for name, part in (("row", row), ("col", col)):
            if part.numel() and (part.is_floating_point() or part.is_complex()):
                raise ValueError(f"{name} must be whole numbers, got {part.dtype}")
        if weight.is_complex():
            raise ValueError(f"mixing weights must be real, got {weight.dtype}")
        row, col, weight = row.long(), col.long(), weight.double()
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
        i = torch.arange(max(n, 0))
        return cls.from_edges(n, i, i, torch.ones(len(i)))

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

    @cached_property
    def block_rows(self) -> int:
        """Rows of the largest block."""
        return int(self.blocks.diff().max()) if self.n_rows else 0

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
        return Mixing.from_tensors([part.to(device) for part in self.tensors()])

    def tensors(self) -> list[Tensor]:
        """The parts, for ops that take tensors alone; `from_tensors` puts them together again."""
        return [self.indptr, self.indices, self.weights, self.weights32, self.runs, self.blocks]

    @classmethod
    def from_tensors(cls, parts: Sequence[Tensor]) -> Mixing:
        """The matrix of these parts, as they are."""
        mixing = object.__new__(cls)
        names = ("indptr", "indices", "weights", "weights32", "runs", "blocks")
        for name, part in zip(names, parts, strict=True):
            object.__setattr__(mixing, name, part)
        object.__setattr__(mixing, "_slots", {})
        return mixing

    def transposed(self) -> list[Tensor]:
        """`tensors()` of W^T, what a derivative is multiplied by; no size depends on a value."""
        order = torch.argsort(self.indices, stable=True)
        row = torch.arange(self.n_rows + 1, device=self.device)
        indptr = torch.searchsorted(self.indices[order], row)
        weights = self.weights[order], self.weights32[order]
        return [indptr, self.rows[order], *weights, row, self.blocks]

    def weights_as(self, dtype: torch.dtype) -> Tensor:
        """(nnz,) the weights in float32 or float64."""
        return self.weights if dtype == torch.float64 else self.weights32

    def _runs(self) -> Tensor:
        """Where a row differs from the one above it."""
        above = torch.arange(self.nnz, device=self.device) - self.degrees[self.rows]
        above.clamp_(min=0)  # the same entry of the row above, if it has as many
        unlike = (self.indices != self.indices[above]) | (self.weights != self.weights[above])
        unlike_before = torch.zeros_like(self.indptr[:1]).expand(self.nnz + 1).clone()
        unlike_before[1:] = unlike.cumsum(0)
        begins = torch.ones(self.n_rows + 1, dtype=torch.bool, device=self.device)
        begins[1:-1] = self.degrees.diff() != 0
        begins[:-1] |= unlike_before[self.indptr[1:]] > unlike_before[self.indptr[:-1]]
        return begins.nonzero().squeeze(1)

    def _blocks(self) -> Tensor:
        """Where no entry reaches from the rows and columns before to those from there on."""
        low = torch.bincount(torch.minimum(self.rows, self.indices), minlength=self.n_rows)
        high = torch.bincount(torch.maximum(self.rows, self.indices), minlength=self.n_rows)
        crossing = (low - high).cumsum(0)  # entries that begin at a row or before, and end after it
        begins = torch.ones(self.n_rows + 1, dtype=torch.bool, device=self.device)
        begins[1:] = crossing == 0
        return begins.nonzero().squeeze(1)

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
                weights = self.weights_as(dtype)[entry].unsqueeze(1)
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
    if not isinstance(blocks, Sequence) or not all(isinstance(b, Mixing) for b in blocks):
        raise ValueError(f"block_diag needs a list of Mixings, got {type(blocks).__name__}")
    if not blocks:
        raise ValueError("block_diag needs at least one block, got none")
    rows = torch.tensor([block.n_rows for block in blocks])
    entries = torch.tensor([block.nnz for block in blocks])
    first_row = (rows.cumsum(0) - rows).to(blocks[0].device)
    indptr = torch.zeros(int(rows.sum()) + 1, dtype=torch.int64, device=blocks[0].device)
    indptr[1:] = torch.cat([block.degrees for block in blocks]).cumsum(0)
    indices = torch.cat([block.indices for block in blocks])
    indices += first_row.repeat_interleave(entries.to(indices.device), output_size=len(indices))
    return Mixing(indptr, indices, torch.cat([block.weights for block in blocks]))
