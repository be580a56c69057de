"""Image classification: a model on data that is dealt out to the nodes."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from teleport_bench.activation import BLOCK
from teleport_bench.data import Dataset, load
from teleport_bench.data.dataset import Split
from teleport_bench.data.partition import Shards, check_split, deal, label_histogram
from teleport_bench.errors import UserError
from teleport_bench.models import Network
from teleport_bench.native.calls import Call, Rows
from teleport_bench.native.network import NativeNetwork
from teleport_bench.problems.augmentation import VIEWS, seen
from teleport_bench.problems.base import FleetProblem, Member, Problem, worlds_of
from teleport_bench.registry import DATA, MODELS, PARTITIONS, PROBLEMS, Choice
from teleport_bench.seeds import by_step, generator

CHUNK = 2**24
"""Floats in the input of one evaluation pass: bounds its memory."""

SCORED = 256
"""Samples in one evaluation pass."""

DESCRIBED = 1000
"""Nodes whose label histogram is in the record, the first ones."""


@PROBLEMS.register("classification")
class Classification(Problem):
    """f_i = mean cross-entropy of a model on the shard of node i.

    Batches: "replacement" draws each sample of a batch uniformly from the shard, as the theory has
    it; "shuffle" goes through the shard in a random order, epoch after epoch, and goes on where the
    node stopped when it is active again (a batch may reach into the next epoch).

    `gradient_norm2`, the squared norm of the gradient of the mean model's objective on the whole
    training set, weight_decay/2 ||x||^2 included, is taken for runs whose target it is (`stop`).

    Augmentation of training batches: "crop" takes a window of the image's size, at a uniformly
    random place, out of the image with 4 black pixels on each side; "crop_flip" also mirrors it
    left to right with probability 1/2.
    """

    def __init__(
        self,
        *,
        model: MODELS.field(),  # type: ignore[valid-type]
        data: DATA.field(),  # type: ignore[valid-type]
        partition: PARTITIONS.field() = "iid",  # type: ignore[valid-type]
        batch_size: PositiveInt = 32,
        batches: Literal["replacement", "shuffle"] = "replacement",
        augment: Literal["none", "crop", "crop_flip"] = "none",
    ) -> None:
        self.model: Choice = model
        self.data: Choice = data
        self.partition: Choice = partition
        self.batch_size = batch_size
        self.batches = batches
        self.augment = augment

    on_request = ("gradient_norm2",)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("train_loss", "test_accuracy", "test_accuracy_rows", "validation_accuracy")

    @functools.cached_property
    def dataset(self) -> Dataset:
        return load(self.data)

    @property
    def n_params(self) -> int:
        return self.network.n_params

    @functools.cached_property
    def network(self) -> Network:
        network: Network = MODELS.build(
            self.model, self.dataset.input_shape, self.dataset.n_classes
        )
        return network

    def check(self, n_nodes: int) -> None:
        _ = self.network  # a model that does not fit the images says so
        shard_size = self._shard_size(n_nodes)
        if self.batches == "shuffle" and self.batch_size > shard_size:
            raise UserError(
                f"batch_size {self.batch_size} is more than the {shard_size} samples of a shard "
                f"({len(self.dataset.train)} samples, {n_nodes} nodes): take a smaller batch, "
                'larger shards, or batches = "replacement"'
            )

    def _shard_size(self, n_nodes: int) -> int:
        return check_split(self.partition, len(self.dataset.train), n_nodes)

    def shards(self, seed: int, n_nodes: int) -> Shards:
        """(n, shard_size) sample ids."""
        return deal(self.partition, self.dataset.train.labels, n_nodes, seed)

    def describe(self, seed: int, n_nodes: int) -> dict[str, Any]:
        shards = self.shards(seed, n_nodes)
        first = shards[:DESCRIBED]
        histogram = label_histogram(self.dataset.train.labels, first, self.dataset.n_classes)
        return {
            "data": self.dataset.describe(),
            "parameters": self.n_params,
            "shard_size": shards.shape[1],
            "label_histogram": histogram.tolist(),
        }

    def epochs(self, n_nodes: int, gradients: int) -> float:
        used = self._shard_size(n_nodes) * n_nodes
        return gradients * self.batch_size / used

    def operations(self) -> int:
        return self.batch_size * self.network.operations(self.dataset.input_shape)

    def drawn(self) -> int:
        return self.batch_size * (1 if self.augment == "none" else 2)

    def memory(
        self, members: Sequence[Member], rows: int, device: torch.device, *, compiled: bool
    ) -> int:
        """Shards, or on a GPU the images; in torch the activations of every row, all of them at
        once and the largest once more, or those of one layer of a pass of `_score`; in C++ those of
        a row a thread."""
        data = self.dataset
        images = sum(split.images.nbytes for split in (data.train, data.validation, data.test))
        shards = sum(8 * n * self._shard_size(n) for _, n in worlds_of(members))
        laid_out = shards if device.type == "cpu" else images
        numbers = self.network.activations(data.input_shape)
        if compiled and NativeNetwork.supports(self.network):
            at_once = torch.get_num_threads()
            return laid_out + 4 * at_once * self.batch_size * 2 * sum(numbers)
        step = rows * (self.batch_size * (sum(numbers) + max(numbers)) + self.n_params)
        passes = min(rows, max(1, CHUNK // (SCORED * numbers[0])))
        score = passes * SCORED * max(a + b for a, b in itertools.pairwise(numbers))
        return laid_out + 4 * max(step, score)

    def fleet(self, members: Sequence[Member], device: torch.device) -> FleetClassification:
        return FleetClassification(self, members, device)


class FleetClassification(FleetProblem):
    """Classification on stacked rows: one pass through the network for all of them."""

    def __init__(self, problem: Classification, members: Sequence[Member], device: torch.device):
        self.problem, self.members, self.device = problem, members, device
        self.network = problem.network
        dataset = problem.dataset
        self.sets = {
            "train": _to(dataset.train, device),
            "validation": _to(dataset.validation, device),
            "test": _to(dataset.test, device),
        }
        scale, shift = normalisation(dataset)
        self.scale = torch.from_numpy(scale)[:, None, None].to(device)
        self.shift = torch.from_numpy(shift)[:, None, None].to(device)
        shards = {world: problem.shards(*world) for world in worlds_of(members)}
        self._native: NativeNetwork | None = None
        self._whole: dict[int, NativeNetwork] = {}
        """Of passes over the whole training set, by samples of a batch."""
        self.in_order = problem.batches == "shuffle"
        sampler = Shuffle if self.in_order else Replacement
        self.samplers = [
            sampler(shards[m.seed, m.nodes], m.seed, problem.batch_size) for m in members
        ]

    def initial(self, seed: int) -> Tensor:
        rng = generator(seed, "init", model=json.dumps(self.problem.model, sort_keys=True))
        return torch.from_numpy(self.network.init(rng)).to(self.device)

    def draw(self, member: int, block: int, holders: NDArray[np.int64]) -> NDArray[np.int32]:
        """(BLOCK, k, batch) sample ids; with augmentation (BLOCK, k, 2, batch), ids and views."""
        ids = self.samplers[member].block(block, holders).astype(np.int32)
        if self.problem.augment == "none":
            return ids
        m = self.members[member]
        rng = generator(m.seed, "augment", nodes=m.nodes, active=m.active, block=block)
        views = rng.integers(VIEWS[self.problem.augment], size=ids.shape, dtype=np.int32)
        return np.stack([ids, views], axis=2)

    def gradient(self, x: Tensor, node: Tensor, data: Tensor) -> Tensor:
        ids, views = (data, None) if self.problem.augment == "none" else data.unbind(1)
        return self._gradient(x, ids, views)

    def _gradient(self, x: Tensor, ids: Tensor, views: Tensor | None) -> Tensor:
        """(rows, P): of the mean cross-entropy of each row on its samples, (rows, batch)."""
        images, labels = self.sets["train"]
        batch = images[ids]
        inputs = self._normalised(batch if views is None else seen(batch, views))
        leaves = [view.detach().requires_grad_() for view in self.network.views(x)]
        with torch.enable_grad():
            logits = self.network.logits(leaves, inputs)
            # a mean within the row, a sum over rows: each row gets its own gradient
            loss = (
                F.cross_entropy(logits.flatten(0, 1), labels[ids].flatten(), reduction="sum")
                / ids.shape[1]
            )
            gradients = torch.autograd.grad(loss, leaves)
        return torch.cat([g.flatten(1) for g in gradients], dim=1)

    def compile(self, rows: Rows) -> bool:
        if not NativeNetwork.supports(self.network):
            return False
        self._native = self._of_batch(self.problem.batch_size)
        self._rows = rows
        self._images = {name: self._native.images(*pair) for name, pair in self.sets.items()}
        return True

    def _of_batch(self, size: int) -> NativeNetwork:
        shape = self.problem.dataset.input_shape
        return NativeNetwork(self.network, shape, size, self.scale, self.shift)

    def call(self, x: Tensor, grad: Tensor, node: Tensor, data: Tensor) -> Call:
        assert self._native is not None
        return self._native.gradient(self._rows, x, grad, data, self._images["train"])

    def at_mean(self, metric: str, mean: Tensor) -> Tensor | None:
        match metric:
            case "train_loss":
                return self._score(mean, "train")[0]
            case "validation_accuracy":
                return self._score(mean, "validation")[1]
            case "test_accuracy":
                return self._score(mean, "test")[1]
        return None

    def evaluate(self, x: Tensor, mean: Tensor, run: Tensor, world: Tensor) -> dict[str, Tensor]:
        n_runs = mean.shape[0]
        accuracy = self._score(mean, "test")[1]
        # at the start, or after an exact average, rows are their mean, which is scored already
        own = accuracy[run]
        differ = (x != mean[run]).any(1)
        if differ.any():
            own[differ] = self._score(x[differ], "test")[1]
        sums = torch.zeros(n_runs, dtype=torch.float64, device=x.device)
        sums.index_add_(0, run, own)
        return {
            "train_loss": self._score(mean, "train")[0],
            "validation_accuracy": self._score(mean, "validation")[1],
            "test_accuracy": accuracy,
            "test_accuracy_rows": sums / torch.bincount(run, minlength=n_runs),
        }

    def gradient_norm2(self, mean: Tensor, decay: float) -> Tensor:
        labels = self.sets["train"][1]
        total = torch.zeros(mean.shape, dtype=torch.float64, device=mean.device)
        ids = torch.arange(len(labels), dtype=torch.int32, device=mean.device)
        for part in torch.split(ids, SCORED):
            total += len(part) * self._gradient_on(mean, part).double()
        gradient = total / len(labels) + decay * mean.double()
        return (gradient**2).sum(1)

    def _gradient_on(self, x: Tensor, ids: Tensor) -> Tensor:
        """(rows, P): the gradient of every row on the same samples."""
        if self._native is not None:
            if len(ids) not in self._whole:
                self._whole[len(ids)] = self._of_batch(len(ids))
            return self._whole[len(ids)].gradients(x, ids[None], self._images["train"])
        rows = max(1, CHUNK // self.sets["train"][0][:SCORED].numel())
        parts = torch.split(x, rows)
        return torch.cat([self._gradient(p, ids.expand(len(p), -1), None) for p in parts])

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)

    def _score(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of each row on a whole set: (rows,) float64 each."""
        if self._native is not None:
            return self._native.score(x, self._images[name], len(self.sets[name][1]))
        images, labels = self.sets[name]
        loss = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        right = torch.zeros_like(loss)
        rows = max(1, CHUNK // images[:SCORED].numel())
        for a in range(0, x.shape[0], rows):
            params = self.network.views(x[a : a + rows])
            part = slice(a, a + params[0].shape[0])
            for b in range(0, len(labels), SCORED):
                inputs = self._normalised(images[b : b + SCORED])
                inputs = inputs.expand(params[0].shape[0], *inputs.shape)
                truth = labels[b : b + SCORED].expand(inputs.shape[:2])
                logits = self.network.logits(params, inputs)
                losses = F.cross_entropy(logits.transpose(1, 2), truth, reduction="none")
                loss[part] += losses.sum(1, dtype=torch.float64)
                right[part] += (logits.argmax(2) == truth).sum(1)
        return loss / len(labels), right / len(labels)


def normalisation(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, shift) of each channel, so that a model sees scale * image + shift.

    A channel that is the same everywhere is divided by 1, and so is zero.
    """
    mean, std = (values.copy() for values in dataset.mean_std)
    constant = std == 0
    std[constant] = 1
    scale = (1 / (dataset.scale * std)).astype(np.float32)
    shift = -mean / std
    level = np.rint(mean * dataset.scale)  # the very pixel: `mean` is rounded
    shift[constant] = -level[constant] * scale[constant]
    return scale, shift


def _to(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = np.ascontiguousarray(split.images), np.ascontiguousarray(split.labels)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


class Replacement:
    """Each sample of each batch is drawn uniformly from the holder's shard."""

    def __init__(self, shards: Shards, seed: int, batch_size: int) -> None:
        self.shards, self.seed, self.batch_size = shards, seed, batch_size

    def block(self, block: int, holders: NDArray[np.int64]) -> NDArray[np.integer]:
        """(BLOCK s, k) holders -> (BLOCK s, k, batch) sample ids, for s local steps a round."""
        n, shard_size = self.shards.shape
        k = holders.shape[1]
        position: Shards = by_step(
            lambda rng: rng.integers(shard_size, size=(BLOCK, k, self.batch_size)),
            len(holders) // BLOCK,
            self.seed,
            "batches",
            nodes=n,
            active=k,
            block=block,
        )
        # a third of the time of shards[holders[:, :, None], position]
        ids: Shards = self.shards.reshape(-1).take(holders[:, :, None] * shard_size + position)
        return ids


class Shuffle:
    """Each node goes through its shard in epochs, in an order of its own for each epoch."""

    def __init__(self, shards: Shards, seed: int, batch_size: int) -> None:
        self.shards, self.seed, self.batch_size = shards.copy(), seed, batch_size
        self.position = np.full(len(shards), shards.shape[1])  # all used up: shuffle at first visit
        self.epoch = np.zeros(len(shards), dtype=np.int64)

    def block(self, block: int, holders: NDArray[np.int64]) -> NDArray[np.int64]:
        """(rounds, k) holders -> (rounds, k, batch) sample ids; blocks must come in order."""
        shard_size, batch = self.shards.shape[1], self.batch_size
        out = np.empty((*holders.shape, batch), dtype=np.int64)
        for t, active in enumerate(holders):
            columns = self.position[active][:, None] + np.arange(batch)
            out[t] = self.shards[active[:, None], np.minimum(columns, shard_size - 1)]
            self.position[active] += batch
            for a in np.flatnonzero(self.position[active] > shard_size):
                node = active[a]
                missing = int(self.position[node] - shard_size)
                self._shuffle(int(node))
                out[t, a, batch - missing :] = self.shards[node, :missing]
                self.position[node] = missing
        return out

    def _shuffle(self, node: int) -> None:
        rng = generator(self.seed, "shuffle", node=node, epoch=int(self.epoch[node]))
        self.epoch[node] += 1
        rng.shuffle(self.shards[node])
