"""The 8x8 digits of scikit-learn."""

import numpy as np

from teleport_bench.data.dataset import Dataset, split_by_class
from teleport_bench.registry import DATA


@DATA.register("digits")
def digits() -> Dataset:
    """1,797 grey 8x8 images of digits (scikit-learn); 60/20/20 % a class for train/validation/test.

    Source: Alpaydin and Kaynak 1998, as shipped by scikit-learn.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = raw.images.astype(np.uint8)[:, None]  # grey levels 0..16
    train, validation, test = split_by_class(images, raw.target.astype(np.int64), 0.2, 0.2, seed=0)
    return Dataset("digits", train, validation, test, n_classes=10, scale=16.0)
