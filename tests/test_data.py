"""Data sets from files: what comes out, and what is said about files that are not what they should be."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.data import cifar, digits, idx, load_images
from hpcasync.errors import UsageError


def write_idx(path: Path, values: np.ndarray) -> None:
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, mark: str = "-", end: str = "", train: int = 12, test: int = 6) -> None:
    rng = np.random.default_rng(0)
    for part, n in ("train", train), ("t10k", test):
        write_idx(folder / f"{part}-images{mark}idx3-ubyte{end}", rng.integers(0, 256, (n, 5, 4), np.uint8))
        write_idx(folder / f"{part}-labels{mark}idx1-ubyte{end}", np.arange(n, dtype=np.uint8) % 3)


def write_cifar(folder: Path, n: int = 4) -> None:
    rng = np.random.default_rng(0)
    for name in (*cifar.TRAIN, cifar.TEST):
        labels, pixels = np.arange(n, dtype=np.uint8)[:, None], rng.integers(0, 256, (n, 3072), np.uint8)
        (folder / name).write_bytes(np.hstack([labels, pixels]).tobytes())


def test_digits_are_split_once_and_in_proportion():
    images = digits.load()
    assert images.x.shape == (1437, 1, 8, 8)
    assert images.test_x.shape == (360, 1, 8, 8)
    assert images.shape == (1, 8, 8)
    assert images.classes == 10
    train, test = torch.bincount(images.y), torch.bincount(images.test_y)
    assert ((train + test) / 1797 * 360 - test).abs().max() < 1
    again = load_images(None)
    assert torch.equal(again.test_x, images.test_x)


def test_the_digits_are_scikit_learns_without_importing_it(monkeypatch):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images, own_labels = digits.read()
    assert np.array_equal(images.reshape(-1, 64), pixels)
    assert np.array_equal(own_labels, labels)
    for seed in range(20):
        test_size = 360 + seed
        expected = train_test_split(np.arange(1797), test_size=test_size, stratify=labels, random_state=seed)
        for own, theirs in zip(digits.split(own_labels, test_size, seed), expected, strict=True):
            assert np.array_equal(own, theirs)
    code = "import sys; from hpcasync.data import load_images; load_images(None); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100).stdout == "False\n"
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        digits.load()


def test_images_are_normalised_by_the_training_set(tmp_path):
    write_cifar(tmp_path)
    images = load_images(tmp_path)
    std, mean = torch.std_mean(images.x, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones(3), rtol=0, atol=1e-5)
    raw = cifar.read(tmp_path / cifar.TEST)[0].astype(np.float64)
    train = np.concatenate([cifar.read(tmp_path / name)[0] for name in cifar.TRAIN]).astype(np.float64)
    expected = (raw - train.mean((0, 2, 3), keepdims=True)) / train.std((0, 2, 3), keepdims=True)
    torch.testing.assert_close(images.test_x, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    assert images.x.dtype == torch.float32
    assert images.y.dtype == torch.int64


def test_a_channel_without_contrast_becomes_zero(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.full((12, 5, 4), 7, np.uint8))
    assert torch.equal(load_images(tmp_path).x, torch.zeros(12, 1, 5, 4))


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_folders_by_any_of_their_names(tmp_path, mark, end):
    write_mnist(tmp_path, mark, end)
    images = load_images(tmp_path)
    assert images.x.shape == (12, 1, 5, 4)
    assert images.test_y.tolist() == [0, 1, 2, 0, 1, 2]
    assert images.classes == 3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sampled_from(["a", "a.gz"]), st.data())
def test_idx_round_trip(shape, name, data):
    values = np.frombuffer(data.draw(st.binary(min_size=(n := int(np.prod(shape))), max_size=n)), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_idx(path, values.reshape(shape))
        np.testing.assert_array_equal(idx.read(path, len(shape)), values.reshape(shape))


@given(st.sampled_from(["a", "a.gz"]), st.data())
def test_idx_cut_short_anywhere_is_refused(name, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_idx(path, np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: [^\n]*$"):
            idx.read(path, 3)


@given(st.binary(max_size=64), st.sampled_from(["a", "a.gz"]))
def test_any_bytes_are_an_idx_file_or_refused(data, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            assert idx.read(path, 1).ndim == 1
        except UsageError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes; an idx file of 1 dimensions begins with 8"),
        (bytes(8), "magic number 0x00000000; expected 0x00000801"),
        (bytes.fromhex("0000080100000003") + b"ab", "10 bytes; its header announces 3 values, 11 bytes in all"),
        (bytes.fromhex("0000080100000003") + b"abcd", "12 bytes; its header announces 3 values, 11 bytes in all"),
        (bytes.fromhex("0000080100000000"), "no values in it; its sizes are 0"),
    ],
)
def test_idx_errors_say_what_was_expected(tmp_path, data, message):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UsageError, match=f"^{tmp_path}/a: {message}$"):
        idx.read(tmp_path / "a", 1)


def test_idx_sizes_beyond_64_bits_do_not_overflow(tmp_path):
    (tmp_path / "a").write_bytes(bytes.fromhex("00000803") + b"\xff" * 12)
    with pytest.raises(UsageError, match=f"{16 + (2**32 - 1) ** 3} bytes in all"):
        idx.read(tmp_path / "a", 3)


def test_a_plain_file_called_gz_is_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"not gzip at all")
    with pytest.raises(UsageError, match=r"a\.gz: not a complete gzip file"):
        idx.read(tmp_path / "a.gz", 1)


def test_a_folder_in_place_of_an_idx_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        idx.read(tmp_path, 1)


def test_a_missing_mnist_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match=r"t10k-labels-idx1-ubyte: no such file, nor with \.gz"):
        load_images(tmp_path)


def test_labels_and_images_must_be_as_many(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(11, np.uint8))
    with pytest.raises(UsageError, match="11 labels; train-images-idx3-ubyte has 12 images"):
        load_images(tmp_path)


def test_training_and_test_images_must_be_of_one_size(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((6, 5, 5), np.uint8))
    with pytest.raises(UsageError, match="training images are 5 x 4 pixels, test images 5 x 5"):
        load_images(tmp_path)


def test_a_test_label_unknown_in_training_is_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([0, 1, 2, 0, 1, 9], np.uint8))
    with pytest.raises(UsageError, match="test label 9; the training labels end at 2"):
        load_images(tmp_path)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar_round_trip(tmp_path, inner):
    home = tmp_path / inner
    home.mkdir(exist_ok=True)
    write_cifar(home)
    images = load_images(tmp_path)
    assert images.x.shape == (20, 3, 32, 32)
    assert images.y.tolist() == [0, 1, 2, 3] * 5
    assert images.test_x.shape == (4, 3, 32, 32)
    assert images.classes == 10


@pytest.mark.parametrize("name", [*cifar.TRAIN, cifar.TEST])
def test_a_missing_cifar_file_is_named(tmp_path, name):
    write_cifar(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=f"{name}: No such file or directory; CIFAR-10 has data_batch_1"):
        load_images(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 4 * 3073 - 1])
def test_cifar_cut_short_is_refused(tmp_path, size):
    write_cifar(tmp_path)
    (tmp_path / cifar.TEST).write_bytes(bytes(size))
    with pytest.raises(UsageError, match=rf"test_batch\.bin: {size} bytes; expected a multiple of 3073"):
        load_images(tmp_path)


def test_a_cifar_label_above_nine_is_refused(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / cifar.TEST).write_bytes(bytes(3073) + b"\x0a" + bytes(3072))
    with pytest.raises(UsageError, match=r"test_batch\.bin: label 10 of image 1; expected 0 to 9"):
        load_images(tmp_path)


def test_a_folder_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"no images in it; expected train-images-idx3-ubyte.* or data_batch_1\.bin"):
        load_images(tmp_path)
