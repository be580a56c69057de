"""Rounds of decentralized learning as a user would write them, for test_rounds.py.

Both start from the same parameters as the project's own rounds and make the same random choices:
they ask the project for them. Images are normalised once, before anything is timed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from teleport_bench import RunSpec
from teleport_bench.activation import BLOCK, draw_holders
from teleport_bench.models import Network, layers
from teleport_bench.problems import Member


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Rival(ABC):
    """A run on a ring of at least three active nodes."""

    def __init__(self, spec: RunSpec, device: torch.device, dtype: torch.dtype = torch.float32):
        self.spec, self.device, self.dtype = spec, device, dtype
        self.rows, self.engine = spec.n_active, "torch"
        member = Member(spec.seed, spec.nodes, spec.n_active)
        self.problem = spec.build_problem().fleet([member], device)
        self.network: Network = spec.build_problem().network
        self.teleports = spec.build_algorithm().activation != "all"
        images, labels = self.problem.sets["train"]
        normalised = images.float() * self.problem.scale + self.problem.shift
        self.inputs, self.labels = normalised.to(dtype), labels
        self.start = self.problem.initial(spec.seed).to(dtype)

    def advance(self, rounds: int) -> tuple[float, Tensor]:
        """That many rounds from the start: their seconds, drawing included, and (k, P) tokens."""
        self.reset()
        began = now(self.device)
        before = None
        for t in range(rounds):
            if t % BLOCK == 0:
                holders, ids = self._draw(t // BLOCK)
            here = holders[t % BLOCK]
            self.round(here, here if before is None else before, ids[t % BLOCK])
            before = here
        return now(self.device) - began, flat(self.tokens(before))

    def _draw(self, block: int) -> tuple[Tensor, Tensor]:
        """(BLOCK, k) holders and (BLOCK, k, batch) samples."""
        spec = self.spec
        activation = spec.build_algorithm().activation
        holders = draw_holders(activation, spec.seed, spec.nodes, spec.n_active, block)
        ids = torch.from_numpy(self.problem.draw(0, block, holders)).to(self.device)
        return torch.from_numpy(holders.copy()).to(self.device), ids

    @abstractmethod
    def reset(self) -> None:
        """Every node at the start."""

    @abstractmethod
    def round(self, holders: Tensor, before: Tensor, ids: Tensor) -> None:
        """holders, before: (k,), who is active and who was; ids: (k, batch) samples."""

    @abstractmethod
    def tokens(self, holders: Tensor) -> list[Tensor]:
        """(k, ...) for each parameter."""


class Loop(Rival):
    """A module and an optimizer a node; state dictionaries are averaged with the neighbours'."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        nodes = range(self.spec.nodes)
        self.models = [module(self.network).to(self.device, self.dtype) for _ in nodes]
        self.optimizers = [torch.optim.SGD(m.parameters(), lr=self.spec.lr) for m in self.models]

    def reset(self) -> None:
        for model in self.models:
            parts = parameters(self.network, self.start[None], model)
            model.load_state_dict({name: part[0] for name, part in parts.items()})

    def round(self, holders: Tensor, before: Tensor, ids: Tensor) -> None:
        models = [self.models[node] for node in holders.tolist()]
        if self.teleports:
            states = [self.models[node].state_dict() for node in before.tolist()]
            # all are read before any is written: a node may be active twice in a row
            fetched = [{name: v.clone() for name, v in state.items()} for state in states]
            load(models, fetched)
        for node, model, batch in zip(holders.tolist(), models, ids, strict=True):
            self.optimizers[node].zero_grad()
            F.cross_entropy(model(self.inputs[batch]), self.labels[batch]).backward()
            self.optimizers[node].step()
        states = [model.state_dict() for model in models]
        rings = zip(states[-1:] + states[:-1], states, states[1:] + states[:1], strict=True)
        load(models, [{name: (a[name] + b[name] + c[name]) / 3 for name in a} for a, b, c in rings])

    def tokens(self, holders: Tensor) -> list[Tensor]:
        parts = zip(*(self.models[node].parameters() for node in holders.tolist()), strict=True)
        return [torch.stack(part).detach() for part in parts]


class Vmap(Rival):
    """Stacked parameters, and one vectorized gradient for all nodes."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.model = module(self.network).to(self.device, self.dtype)

        def loss(params: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.model, params, (inputs,)), labels)

        self.gradient = vmap(grad(loss))

    def reset(self) -> None:
        rows = self.start.repeat(self.spec.nodes, 1)
        self.params = parameters(self.network, rows, self.model)

    def round(self, holders: Tensor, before: Tensor, ids: Tensor) -> None:
        x = self.params
        if self.teleports:
            x = {name: p[before] for name, p in x.items()}
        gradients = self.gradient(x, self.inputs[ids], self.labels[ids])
        y = {name: p - self.spec.lr * gradients[name] for name, p in x.items()}
        x = {name: (p.roll(1, 0) + p + p.roll(-1, 0)) / 3 for name, p in y.items()}
        if not self.teleports:
            self.params = x
            return
        for name, p in x.items():
            self.params[name][holders] = p

    def tokens(self, holders: Tensor) -> list[Tensor]:
        return [p[holders] for p in self.params.values()]


def module(network: Network) -> nn.Module:
    """The network in torch's own modules."""

    def translated(layer: layers.Layer) -> nn.Module:
        match layer:
            case layers.Linear():
                return nn.Linear(layer.inputs, layer.outputs)
            case layers.Conv2d():
                size, padding = layer.kernel, layer.padding
                return nn.Conv2d(layer.channels, layer.filters, size, padding=padding)
            case layers.GroupNorm():
                return nn.GroupNorm(layer.groups, layer.channels)
            case layers.MaxPool2d():
                return nn.MaxPool2d(layer.size)
            case layers.ReLU():
                return nn.ReLU()
            case layers.Flatten():
                return nn.Flatten()
        raise TypeError(f"no module of torch for {layer}")

    return nn.Sequential(*map(translated, network.layers))


def parameters(network: Network, rows: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """(rows, P) -> (rows, ...) by the names of a module, whose Linear is x A^T + b."""
    names = [name for name, _ in model.named_parameters()]
    parts = zip(names, network.views(rows), strict=True)
    return {name: (part.mT if part.ndim == 3 else part).contiguous() for name, part in parts}


def flat(parts: list[Tensor]) -> Tensor:
    """(rows, ...) of each parameter of a module -> (rows, P) as the project has them."""
    return torch.cat([(p.mT if p.ndim == 3 else p).flatten(1) for p in parts], 1)


def load(models: Iterable[nn.Module], states: Iterable[dict[str, Tensor]]) -> None:
    for model, state in zip(models, states, strict=True):
        model.load_state_dict(state)
