"""Data sets that fit into memory, and the shard of one that a rank trains on."""

from pathlib import Path

from hpcasync.data import cifar, digits, idx
from hpcasync.data.images import Images
from hpcasync.data.shard import Shard
from hpcasync.errors import UsageError

__all__ = ["Images", "Shard", "load_images"]


def load_images(folder: Path | None) -> Images:
    """The images in ``folder``: MNIST's format or CIFAR-10's binary version. None: scikit-learn's handwritten digits.

    Raises UsageError: no such folder, neither format in it, a file missing, or one that is not what its name says.
    """
    if folder is None:
        return digits.load()
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; it should hold MNIST-format or CIFAR-10 binary files")
    if idx.found(folder):
        return idx.load(folder)
    if cifar.found(folder):
        return cifar.load(folder)
    raise UsageError(
        f"{folder}: no images in it; expected {idx.NAMES} (MNIST's format) or {cifar.NAMES} (CIFAR-10, binary version)"
    )
