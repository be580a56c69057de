"""What the nodes minimise: f(x) = (1/n) sum_i f_i(x), each f_i known to node i alone."""

from teleport_bench.problems.base import FleetProblem, Member, Problem, worlds_of

__all__ = ["FleetProblem", "Member", "Problem", "worlds_of"]
