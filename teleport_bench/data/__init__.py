"""Image classification data, and how it is dealt out to the nodes."""

from teleport_bench.data.dataset import Dataset, load

__all__ = ["Dataset", "load"]
