"""Metrics and axes by name: what they are called in tables and figures, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from teleport_bench.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A quantity that is evaluated along a run.

    better: "higher" or "lower". format: how a value is written, as in "{:.3f}". log: whether it is
    drawn on a logarithmic axis, and compared by factors. Raises UserError for anything else.
    """

    label: str
    better: str
    format: str
    log: bool = False

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise UserError(
                f"metric {self.label!r:.80}: which way is better is to be 'higher' or 'lower', got "
                f"{self.better!r:.80}"
            )
        try:
            written = self.format.format(0.5)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            written, why = "", f" ({error})"
        else:
            why = ", which shows no value"
        if written in ("", self.format):
            raise UserError(
                f"metric {self.label!r:.80}: cannot write numbers by the format "
                f"{self.format!r:.80}{why}: give one such as '{{:.3f}}'"
            )

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is: sign * value is to be as large as can be."""
        return 1 if self.better == "higher" else -1


class _Metrics(dict[str, Metric]):
    """Metrics by name, each registered once: of two, reports would take the one that came last."""

    def __setitem__(self, name: str, metric: Metric) -> None:
        if not isinstance(metric, Metric):
            raise UserError(
                f"metric {name!r:.80} is to be a teleport_bench.metrics.Metric, got {metric!r:.80}"
            )
        if self.get(name, metric) != metric:
            raise UserError(
                f"metric {name!r:.80} is there already, as {self[name]}: give yours another name"
            )
        super().__setitem__(name, metric)

    def update(self, *others: Any, **named: Metric) -> None:
        for name, metric in dict(*others, **named).items():
            self[name] = metric

    def __ior__(self, other: Any) -> _Metrics:  # type: ignore[override,misc]
        self.update(other)
        return self


METRICS = _Metrics()
METRICS |= {
    "test_accuracy": Metric("test accuracy, mean model", "higher", "{:.3f}"),
    "test_accuracy_rows": Metric("test accuracy, mean over own models", "higher", "{:.3f}"),
    "validation_accuracy": Metric("validation accuracy, mean model", "higher", "{:.3f}"),
    "train_loss": Metric("training loss f(x̄)", "lower", "{:.3f}", log=True),
    "objective_gap": Metric("f(x̄) − f*", "lower", "{:.3g}", log=True),
    "gradient_norm2": Metric("‖∇f(x̄)‖²", "lower", "{:.3g}", log=True),
    "consensus": Metric("consensus distance, mean ‖x_i − x̄‖²", "lower", "{:.3g}", log=True),
}
"""train_loss: mean cross-entropy of the mean model on the whole training set. consensus: mean over
the rows of the squared distance to their mean."""


def of_test_set(name: str) -> bool:
    """Whether a metric is of the test set: nothing may be chosen by it."""
    return name.startswith("test_")


ROUND_TIME = "round_time"
METRICS[ROUND_TIME] = Metric("microseconds a round", "lower", "{:.1f}", log=True)
"""Of a record, not of a curve: time in data, gradient and mix over the rounds, the run's share of
its fleet by rows. It is a measurement, and differs from machine to machine."""

AXES = {
    "rounds": "rounds",
    "epochs": "epochs (gradients over the data)",
    "gradients": "gradients computed, all nodes",
    "bytes_total": "bytes sent, all nodes",
    "bytes_per_node": "bytes sent a node, mean over nodes",
}

COSTS = {
    "time": Metric("simulated time", "lower", "{:.4g}", log=True),
    "bytes_busiest": Metric("bytes of the busiest node", "lower", "{:.4g}", log=True),
}
"""What a run costs on the network of the suite (`network.simulate`): computed for a report, and in
no record. Both serve as an axis and as a final value."""
METRICS |= COSTS

COST_AXES = {  # a message over a preferred link is the unit of time
    "time": "simulated time, in fast messages",
    "bytes_busiest": "bytes sent by the busiest node",
}

ROUNDS_TO_TARGET = "rounds_to_target"
TO_TARGET = {
    ROUNDS_TO_TARGET: "rounds",
    "gradients_to_target": "gradients",
    "bytes_to_target": "bytes_per_node",
    "time_to_target": "time",
}
"""What a run has cost on an axis when it reached its target (`stop`). A run that did not reach it
within its rounds is censored: it took more than those."""
METRICS |= {
    ROUNDS_TO_TARGET: Metric("rounds to the target", "lower", "{:.0f}", log=True),
    "gradients_to_target": Metric("gradients to the target", "lower", "{:.4g}", log=True),
    "bytes_to_target": Metric("bytes a node to the target", "lower", "{:.3g}", log=True),
    "time_to_target": Metric("simulated time to the target", "lower", "{:.4g}", log=True),
}

NOT_EVALUATED = (ROUND_TIME, *TO_TARGET)
"""Metrics of a record that have no curve."""


class Setting(NamedTuple):
    """What a setting is called on an axis, and in the heading of a column."""

    label: str
    short: str


SETTINGS = {
    "nodes": Setting("nodes n", "n"),
    "active": Setting("active nodes k", "k"),
    "lr": Setting("step size", "step size"),
    "seed": Setting("seed", "seed"),
    "rounds": Setting("rounds T", "T"),
    "momentum": Setting("momentum β", "β"),
    "algorithm": Setting("algorithm", "algorithm"),
    "topology": Setting("graph", "graph"),
    "topology.degree": Setting("degree of the graph", "degree"),
    "stop.value": Setting("target", "target"),
    "loss": Setting("share of messages lost", "lost"),
    "away.share": Setting("share of rounds away", "away"),
    "away.spell": Setting("rounds of a spell away", "spell"),
    "problem.zeta2": Setting("heterogeneity ζ²", "ζ²"),
    "problem.sigma2": Setting("gradient noise σ²", "σ²"),
    "problem.dim": Setting("dimension d", "d"),
    "problem.data": Setting("data", "data"),
    "problem.model": Setting("model", "model"),
    "problem.batch_size": Setting("batch size", "batch"),
    "problem.partition": Setting("partition", "partition"),
    "problem.partition.alpha": Setting("Dirichlet α", "α"),
}


def setting(key: str) -> Setting:
    """How the setting with that dotted key is called; an unknown one by the last part of it."""
    key = key.removesuffix(".name")
    last = key.rpartition(".")[2].replace("_", " ")
    return SETTINGS.get(key, Setting(last, last))
