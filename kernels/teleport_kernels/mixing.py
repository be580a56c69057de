"""Sparse mixing matrices on rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from teleport_kernels.tensors import as_tensor, few, shown, size

MOST_ROWS = 2**31
"""So that row * n + column is an int64."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """A sparse square matrix W that mixes rows: row i receives, `x_i <- sum_j W[i, j] x_j`.

    Stored by rows (CSR). The neighbours of a row stand in ascending column order, which is also the
    order in which every op adds them up, so that results do not depend on the backend.

    indptr: (n + 1,) int64; row i owns the entries indptr[i] .. indptr[i + 1] - 1.
    indices: (nnz,) int64, the column of each entry, strictly ascending within a row.
    weights: (nnz,) float64; ops round them to the dtype they accumulate in.

    The three are copied, and converted where that changes no value: int32 indices to int64, float32
    weights to float64. Raises ValueError on what is no such matrix. A matrix stays as it was made:
    ops refuse one whose parts were changed in place.

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
    _versions: tuple[int, ...] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = [as_tensor(name, getattr(self, name)) for name in ("indptr", "indices", "weights")]
        with torch.inference_mode(False):  # else no derivative could keep the parts
            self._set(*_csr(*parts))

    def _set(self, indptr: Tensor, indices: Tensor, weights: Tensor) -> None:
        set_ = functools.partial(object.__setattr__, self)
        set_("indptr", indptr)
        set_("indices", indices)
        set_("weights", weights)
        set_("weights32", weights.float())
        set_("runs", self._runs())
        set_("blocks", self._blocks())
        set_("_versions", self._counted())

    @classmethod
    def _of(cls, indptr: Tensor, indices: Tensor, weights: Tensor) -> Mixing:
        """The matrix of new tensors that are known to be one."""
        mixing = object.__new__(cls)
        object.__setattr__(mixing, "_slots", {})
        mixing._set(indptr, indices, weights)
        return mixing

    @classmethod
    def from_dense(cls, W: Any) -> Mixing:
        """The non-zero entries of W, an (n, n) matrix of finite numbers: a tensor, an array, nested
        lists, or a sparse matrix of torch or SciPy."""
        sparse = isinstance(W, Tensor) and W.layout != torch.strided and not W.is_nested
        if not sparse and not hasattr(W, "tocoo"):
            W = as_tensor("W", W)
        if len(W.shape) != 2 or W.shape[0] != W.shape[1]:
            raise ValueError(f"a mixing matrix is square, got shape {tuple(W.shape)}")
        with torch.inference_mode(False):
            row, col, weight = _entries(W)
            kept = weight != 0
            return cls.from_edges(W.shape[0], row[kept], col[kept], weight[kept])

    @classmethod
    def from_edges(cls, n: int, row: Any, col: Any, weight: Any) -> Mixing:
        """W[row, col] = weight, in any order; each entry named once. row, col, weight: (nnz,)."""
        n = size("a mixing matrix's number of rows", n, MOST_ROWS)
        row, col, weight = (
            as_tensor(name, part) for name, part in (("row", row), ("col", col), ("weight", weight))
        )
        if not row.shape == col.shape == weight.shape or row.ndim != 1:
            raise ValueError(
                "row, col and weight must be vectors of one length, got shapes "
                f"{tuple(row.shape)}, {tuple(col.shape)} and {tuple(weight.shape)}"
            )
        _check_devices(row=row, col=col, weight=weight)
        with torch.inference_mode(False):
            row, col, weight = _whole("row", row), _whole("col", col), _weights(weight)
            _check_range("row", row, n)
            _check_range("column", col, n)
            key, order = torch.sort(row * n + col)
            if bool((key[1:] == key[:-1]).any()):
                twice = int(key[1:][key[1:] == key[:-1]][0])
                raise ValueError(f"entry ({twice // n}, {twice % n}) is given more than once")
            indptr = torch.zeros(n + 1, dtype=torch.int64, device=row.device)
            indptr[1:] = torch.bincount(row, minlength=n).cumsum(0)
            return cls._of(indptr, col[order], weight[order])

    @classmethod
    def identity(cls, n: int) -> Mixing:
        """W = I on the CPU: every row keeps its own value."""
        n = size("a mixing matrix's number of rows", n, MOST_ROWS)
        i = torch.arange(n, device="cpu")
        return cls.from_edges(n, i, i, torch.ones(n, dtype=torch.float64, device="cpu"))

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
        try:
            device = torch.device(device)
        except (RuntimeError, TypeError):
            raise ValueError(f'no device {shown(device)}: give one as "cpu" or "cuda:1"') from None
        if self.device == device:
            return self
        self.check_unchanged()
        try:
            with torch.inference_mode(False):
                return _restored([part.to(device) for part in self.tensors()])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:  # torch has no such device, or no values
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the matrix cannot go from {self.device} to {device}: {reason}"
            ) from None

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
        object.__setattr__(mixing, "_versions", None)
        return mixing

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.tensors(),)

    def check_unchanged(self) -> None:
        """No part was changed in place since the matrix was made."""
        if self._versions is not None and self._counted() != self._versions:
            raise ValueError("a part of the mixing matrix was changed in place: make a new Mixing")

    def _counted(self) -> tuple[int, ...]:
        """How often each part was changed in place."""
        return (
            self.indptr._version,
            self.indices._version,
            self.weights._version,
            self.weights32._version,
            self.runs._version,
            self.blocks._version,
        )

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
    for block in blocks:
        block.check_unchanged()
    _check_devices(**{f"block {i}": block for i, block in enumerate(blocks)})
    device = blocks[0].device
    if device.type == "meta":
        raise ValueError("block_diag needs the blocks' values, which they have not on meta")
    with torch.inference_mode(False):
        rows = torch.tensor([block.n_rows for block in blocks], device="cpu")
        entries = torch.tensor([block.nnz for block in blocks], device="cpu")
        first_row = (rows.cumsum(0) - rows).to(device)
        indptr = torch.zeros(int(rows.sum()) + 1, dtype=torch.int64, device=device)
        indptr[1:] = torch.cat([block.degrees for block in blocks]).cumsum(0)
        indices = torch.cat([block.indices for block in blocks])
        indices += first_row.repeat_interleave(entries.to(device), output_size=len(indices))
        return Mixing._of(indptr, indices, torch.cat([block.weights for block in blocks]))


def _restored(parts: Sequence[Tensor]) -> Mixing:
    """`Mixing.from_tensors` of tensors that are its own: another device's, or a pickled file's."""
    mixing = Mixing.from_tensors(parts)
    object.__setattr__(mixing, "_versions", mixing._counted())
    return mixing


def _csr(indptr: Tensor, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of what `Mixing` is given, in the types that it has, or ValueError."""
    for name, part in (("indptr", indptr), ("indices", indices), ("weights", weights)):
        if part.ndim != 1:
            raise ValueError(f"{name} must be a vector, got shape {tuple(part.shape)}")
    _check_devices(indptr=indptr, indices=indices, weights=weights)
    nnz = len(indices)
    if len(weights) != nnz:
        raise ValueError(f"each of {nnz} indices must have a weight, got {len(weights)} weights")
    indptr, indices, weights = _indptr(indptr, nnz), _whole("indices", indices), _weights(weights)
    n, ends = len(indptr) - 1, indptr[1:]
    _check_range("column", indices, n)
    descends = indices[1:] <= indices[:-1]
    descends[ends[(ends > 0) & (ends < nnz)] - 1] = False  # from the end of a row to the next
    if bool(descends.any()):
        entry = int(descends.nonzero()[0]) + 1
        row = int(torch.searchsorted(indptr, entry, right=True)) - 1
        raise ValueError(
            f"indices must strictly ascend within a row, got {int(indices[entry])} after "
            f"{int(indices[entry - 1])} in row {row}: give Mixing.from_edges(n, row, col, weight)"
        )
    return indptr, indices, weights


def _indptr(part: Tensor, nnz: int) -> Tensor:
    """Where each row begins, and the last one ends, as an int64 vector of its own."""
    indptr = _whole("indptr", part)
    if not len(indptr):
        raise ValueError("indptr must have one number more than there are rows, got none")
    size("a mixing matrix's number of rows", len(indptr) - 1, MOST_ROWS)
    if indptr[0] != 0 or indptr[-1] != nnz or bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError(
            f"indptr must ascend from 0 to {nnz}, the number of indices, got {few(indptr)}"
        )
    return indptr


def _whole(name: str, part: Tensor) -> Tensor:
    """Whole numbers as an int64 vector of their own."""
    if part.numel() and (part.dtype.is_floating_point or part.dtype.is_complex):
        raise ValueError(f"{name} must be whole numbers, got {part.dtype}")
    if part.numel() and part.dtype == torch.bool:
        raise ValueError(
            f"{name} must be whole numbers, got {part.dtype}: give the numbers of rows"
        )
    return part.long().clone(memory_format=torch.contiguous_format)


def _weights(part: Tensor) -> Tensor:
    """Finite numbers as a float64 vector of their own."""
    if part.dtype.is_complex:
        raise ValueError(f"mixing weights must be real, got {part.dtype}")
    weights = part.double().clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("mixing weights must be finite, got NaN or infinity")
    return weights


def _check_range(name: str, index: Tensor, n: int) -> None:
    if index.numel() and (index.min() < 0 or index.max() >= n):
        bad = index[(index < 0) | (index >= n)][0].item()
        raise ValueError(f"{name} {bad} is out of range, expected 0..{n - 1}")


def _check_devices(**parts: Tensor | Mixing) -> None:
    devices = {part.device for part in parts.values()}
    if len(devices) > 1:
        found = ", ".join(f"{name} on {part.device}" for name, part in parts.items())
        raise ValueError(f"all parts must be on one device, got {found:.200}")


def _entries(W: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(row, col, weight) of the entries of a square matrix: a dense tensor, or a sparse matrix."""
    if hasattr(W, "tocoo"):  # SciPy's
        W = W.tocsr().tocoo()  # which adds up what is given twice, as it is meant
        return as_tensor("row", W.row), as_tensor("col", W.col), as_tensor("W", W.data)
    if W.layout == torch.sparse_coo and not W.dense_dim():
        W = W.coalesce()
        return *as_tensor("W", W.indices()), as_tensor("W", W.values())
    if W.layout in (torch.sparse_csr, torch.sparse_csc) and not W.dense_dim():
        by_row = W.layout == torch.sparse_csr
        indptr, indices = (
            (W.crow_indices(), W.col_indices()) if by_row else (W.ccol_indices(), W.row_indices())
        )
        indptr, indices, weights = (as_tensor("W", part) for part in (indptr, indices, W.values()))
        indptr = _indptr(indptr, len(indices))
        outer = torch.arange(len(W), device=W.device).repeat_interleave(indptr.diff())
        return (outer, indices, weights) if by_row else (indices, outer, weights)
    W = as_tensor("W", W if W.layout == torch.strided else W.to_dense())
    row, col = W.nonzero(as_tuple=True)
    return row, col, W[row, col]
