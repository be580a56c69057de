"""Small networks without batch statistics, evaluated for many rows of parameters at once."""

from teleport_bench.models.layers import Network

__all__ = ["Network"]
