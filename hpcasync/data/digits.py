"""The handwritten digits that come with scikit-learn: 1797 images of 8 x 8 pixels in 17 shades, 10 classes.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hpcasync.data.images import Images, normalised

TEST_SIZE = 360  # a fifth; 1437 are left to train on
SPLIT_SEED = 0  # one split for every run, whatever its own seed: accuracies of two runs then differ by training alone


def load() -> Images:
    """1437 training and 360 test images, (1, 8, 8), every class in the same proportion in both."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype("uint8").reshape(-1, 1, 8, 8)
    x, test_x, y, test_y = train_test_split(
        images, labels, test_size=TEST_SIZE, stratify=labels, random_state=SPLIT_SEED
    )
    return normalised(x, y, test_x, test_y, classes=10)
