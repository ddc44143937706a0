"""CIFAR-10's binary version: records of one label byte and 3 x 32 x 32 pixel bytes, no header.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcasync.data.images import Images, normalised
from hpcasync.errors import UsageError

SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
CLASSES = 10
TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
TEST = "test_batch.bin"
NAMES = "data_batch_1.bin ... data_batch_5.bin and test_batch.bin"


def found(folder: Path) -> bool:
    """Whether ``folder`` or the folder that the archive makes in it holds any of the six files."""
    return any((_home(folder) / name).exists() for name in (*TRAIN, TEST))


def load(folder: Path) -> Images:
    """The six files in ``folder`` or in its cifar-10-batches-bin; images are (3, 32, 32), in 10 classes.

    UsageError names the file that is missing, is not a whole number of records, or has a label above 9.
    """
    home = _home(folder)
    parts = [read(home / name) for name in TRAIN]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return normalised(pixels, labels, *read(home / TEST), classes=CLASSES)


def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels (N, 3, 32, 32) and labels (N,) of one file."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; CIFAR-10 has {NAMES}") from error
    if len(data) == 0 or len(data) % RECORD_BYTES:
        raise UsageError(f"{path}: {len(data)} bytes; expected a multiple of {RECORD_BYTES}, one per image")
    records = data.reshape(-1, RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= CLASSES:
        raise UsageError(f"{path}: label {labels.max()} of image {labels.argmax()}; expected 0 to {CLASSES - 1}")
    return records[:, 1:].reshape(-1, *SHAPE), labels


def _home(folder: Path) -> Path:
    inner = folder / "cifar-10-batches-bin"
    return inner if inner.is_dir() else folder
