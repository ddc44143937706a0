"""The handwritten digits that come with scikit-learn: 1797 images of 8 x 8 pixels in 17 shades, 10 classes.

Their file is read without scikit-learn: to import that takes half as long as to import PyTorch, on every rank.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcasync.data.images import Images, normalised
from hpcasync.errors import UsageError

TEST_SIZE = 360  # a fifth; 1437 are left to train on
SPLIT_SEED = 0  # one split for every run, whatever its own seed: accuracies of two runs then differ by training alone


def load() -> Images:
    """1437 training and 360 test images, (1, 8, 8), every class in the same proportion in both.

    Raises:
        UsageError: scikit-learn is not installed, or has the file elsewhere.
    """
    images, labels = read()
    train, test = split(labels, TEST_SIZE, SPLIT_SEED)
    return normalised(images[train], labels[train], images[test], labels[test], classes=10)


def read() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (1797, 1, 8, 8) and labels (1797,), as scikit-learn's load_digits() has them. Raises UsageError."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError(
            "the handwritten digits come with scikit-learn, which is not installed: pip install scikit-learn"
        )
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the handwritten digits of scikit-learn cannot be read ({error})") from None
    return np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, 8, 8), table[:, -1]


def split(labels: NDArray[np.uint8], test_size: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the training and the test set, every class in the same proportion in both.

    The same, in the same order, as scikit-learn's ``train_test_split(stratify=labels, random_state=seed)`` makes of
    them: it draws the same numbers.
    """
    random = np.random.RandomState(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = np.array([len(each) for each in members])
    of_train = _apportion(sizes, len(labels) - test_size, random)
    of_test = _apportion(sizes - of_train, test_size, random)
    shuffled = [each[random.permutation(len(each))] for each in members]
    train = np.concatenate([each[:n] for each, n in zip(shuffled, of_train, strict=True)])
    test = np.concatenate([each[n : n + m] for each, n, m in zip(shuffled, of_train, of_test, strict=True)])
    return random.permutation(train), random.permutation(test)


def _apportion(sizes: NDArray[np.intp], seats: int, random: np.random.RandomState) -> NDArray[np.intp]:
    """``seats`` in proportion to ``sizes``, by the largest remainders; equal remainders draw lots."""
    exact = sizes / sizes.sum() * seats
    given = np.floor(exact)
    remainders = exact - given
    for remainder in sorted(set(remainders.tolist()), reverse=True):
        left = int(seats - given.sum())
        if left == 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        given[random.choice(equal, size=min(len(equal), left), replace=False)] += 1
    whole: NDArray[np.intp] = given.astype(np.intp)
    return whole
