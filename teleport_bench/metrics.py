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

AXES = {
    "rounds": "rounds",
    "epochs": "epochs (gradients over the data)",
    "gradients": "gradients computed, all nodes",
    "bytes_total": "bytes sent, all nodes",
    "bytes_per_node": "bytes sent a node, mean over nodes",
}
