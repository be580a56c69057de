"""Image classification data, and how it is dealt out to the nodes."""

from teleport_bench.data.dataset import Dataset, Split, load, split_by_class

__all__ = ["Dataset", "Split", "load", "split_by_class"]
