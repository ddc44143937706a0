"""MNIST's format, idx: a big-endian header, then the bytes. MNIST, Fashion-MNIST and their kin come in it.

Magic number 0x00000803 (images) or 0x00000801 (labels): two zero bytes, 8 for unsigned bytes, the number of dimensions.
One 32-bit size per dimension follows. Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcasync.data.images import Images, normalised
from hpcasync.errors import UsageError

NAMES = "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], t10k-images-... and t10k-labels-..."


def found(folder: Path) -> bool:
    """Whether ``folder`` holds any of the four files."""
    parts = [(part, what) for part in ("train", "t10k") for what in ("images", "labels")]
    return any(path.exists() for part, what in parts for path in _names(folder, part, what))


def load(folder: Path) -> Images:
    """The four files of ``folder``, gzipped or not; images are (1, H, W). UsageError names the file that is wrong."""
    pixels, labels = _load_part(folder, "train")
    test_pixels, test_labels = _load_part(folder, "t10k")
    if test_pixels.shape[1:] != pixels.shape[1:]:
        raise UsageError(f"{folder}: training images are {_size(pixels)} pixels, test images {_size(test_pixels)}")
    classes = int(labels.max()) + 1
    if test_labels.max() >= classes:
        raise UsageError(f"{folder}: test label {test_labels.max()}; the training labels end at {classes - 1}")
    return normalised(pixels[:, None], labels, test_pixels[:, None], test_labels, classes)


def read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in one idx file of unsigned bytes; UsageError if it is not exactly that, with ``dimensions``."""
    data = _bytes(path)
    header = 4 + 4 * dimensions
    magic = f"{0x800 + dimensions:#010x}"
    if len(data) < header:
        raise UsageError(f"{path}: {len(data)} bytes; an idx file of {dimensions} dimensions begins with {header}")
    if data[:4] != bytes.fromhex(magic[2:]):
        raise UsageError(f"{path}: magic number 0x{data[:4].hex()}; expected {magic}")
    shape = [int.from_bytes(data[start : start + 4], "big") for start in range(4, header, 4)]
    expected = header + int(np.prod(shape, dtype=object))  # Python integers: a damaged header must not overflow
    if len(data) != expected:
        sizes = " x ".join(map(str, shape))
        raise UsageError(f"{path}: {len(data)} bytes; its header announces {sizes} values, {expected} bytes in all")
    if 0 in shape:
        raise UsageError(f"{path}: no values in it; its sizes are {' x '.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _load_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = (_find(folder, part, what) for what in ("images", "labels"))
    x, y = read(images, dimensions=3), read(labels, dimensions=1)
    if len(x) != len(y):
        raise UsageError(f"{labels}: {len(y)} labels; {images.name} has {len(x)} images")
    return x, y


def _find(folder: Path, part: str, what: str) -> Path:
    names = _names(folder, part, what)
    for path in names:
        if path.exists():
            return path
    raise UsageError(f"{names[0]}: no such file, nor with .gz")


def _names(folder: Path, part: str, what: str) -> list[Path]:
    idx = "idx3" if what == "images" else "idx1"
    return [folder / f"{part}-{what}{mark}{idx}-ubyte{end}" for mark in "-." for end in ("", ".gz")]


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes())
        return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: not a complete gzip file: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _size(pixels: NDArray[np.uint8]) -> str:
    return " x ".join(map(str, pixels.shape[1:]))
