"""Optimization algorithms, one file each: a step readable as the pseudocode of its paper."""

from teleport_bench.algorithms.base import Algorithm, Rate, Round, State

__all__ = ["Algorithm", "Rate", "Round", "State"]
