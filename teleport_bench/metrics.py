"""Metrics and axes by name: what they are called in tables and figures, and which way is better."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A quantity that is evaluated along a run."""

    label: str
    better: str  # "higher" or "lower"
    format: str
    log: bool = False


METRICS = {
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

ROUND_TIME = "round_time"
METRICS[ROUND_TIME] = Metric("microseconds a round", "lower", "{:.1f}", log=True)
"""Of a record, not of a curve: time in data, gradient and mix over the rounds, the run's share of
its fleet by rows. It is a measurement, and differs from machine to machine."""

ROUNDS_TO_TARGET = "rounds_to_target"
METRICS[ROUNDS_TO_TARGET] = Metric("rounds to the target", "lower", "{:.0f}", log=True)
"""Of a record, not of a curve, for runs with a target (`stop`). A run that did not reach it within
its rounds is censored: it took more than those."""

AXES = {
    "rounds": "rounds",
    "epochs": "epochs (gradients over the data)",
    "gradients": "gradients computed, all nodes",
    "bytes_total": "bytes sent, all nodes",
    "bytes_per_node": "bytes sent a node, mean over nodes",
}
