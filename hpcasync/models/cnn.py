"""A small convolutional network."""

from __future__ import annotations

from torch import Tensor, nn


class CNN(nn.Module):
    """Two convolutions, each halving the image, then two linear layers: (N, C, H, W) to logits (N, ``classes``).

    ``shape`` is (C, H, W), H and W at least 4: 8 x 8 digits, 28 x 28 x 1 and 32 x 32 x 3 images alike.
    With ``widths`` (a, b) and ``hidden`` c, the layers have (9 C + 1) a, (9 a + 1) b, (b (H // 4) (W // 4) + 1) c and
    (c + 1) ``classes`` parameters.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, widths: tuple[int, int] = (32, 64), hidden: int = 128
    ) -> None:
        super().__init__()
        channels, height, width = shape
        first, second = widths
        self.features = nn.Sequential(  # shapes for 28 x 28 x 1
            nn.Conv2d(channels, first, 3, padding=1),  # (N, 32, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (N, 32, 14, 14)
            nn.Conv2d(first, second, 3, padding=1),  # (N, 64, 14, 14)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (N, 64, 7, 7)
            nn.Flatten(),  # (N, 3136)
        )
        self.classifier = nn.Sequential(
            nn.Linear(second * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits
