"""Classify images: handwritten digits, MNIST, Fashion-MNIST or CIFAR-10, with an MLP or a small CNN.

    python jobs/image_classification.py                                    # one rank, scikit-learn's digits
    hpcasync run -n 4 jobs/image_classification.py                         # four ranks, synchronous
    hpcasync run -n 4 --slow 3:4 jobs/image_classification.py --strategy hogwild --target 0.97
    mpirun -n 2 python jobs/image_classification.py --strategy downpour pull=4 bound=8
    hpcasync run -n 4 jobs/image_classification.py --data fashion_mnist --model cnn --batch-size 64
    python jobs/image_classification.py --world sim --ranks 16 --strategy stale bound=2

The folder for --data holds MNIST's four files (train-images-idx3-ubyte.gz, ...; gzipped or not) or CIFAR-10's binary
version (data_batch_1.bin, ..., or the folder cifar-10-batches-bin).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from hpcasync.data import Shard, load_images
from hpcasync.models import CNN, MLP
from hpcasync.replica import Replica
from hpcasync.run import Metric, Options, Run, main


@dataclass
class ImageClassification(Options):
    """The options that every job takes, and:"""

    model: Literal["mlp", "cnn"] = "mlp"
    """mlp: one hidden layer of 512. cnn: two convolutions of 32 and 64 channels, one hidden layer of 128."""
    lr: float = 0.2
    """Learning rate of SGD."""


def train(run: Run, job: ImageClassification) -> None:
    images = load_images(job.data)
    loader = Shard(images.x, images.y, run.world.rank, run.world.size, job.batch_size, job.seed)
    model: nn.Module = CNN(images.shape, images.classes)
    if job.model == "mlp":
        model = MLP(math.prod(images.shape), 512, images.classes)  # digits: 65 * 512 + 513 * 10 = 38,410 parameters

    replica = Replica(model)
    # Asynchrony acts like momentum (Mitliagkas et al. 2016, https://arxiv.org/abs/1605.09774): less than the usual 0.9.
    optimizer = torch.optim.SGD(replica.parameters(), lr=job.lr, momentum=0.5, fused=True)

    def evaluate(model: nn.Module) -> dict[str, float]:
        logits = model(images.test_x)
        accuracy = (logits.argmax(dim=1) == images.test_y).float().mean()
        return {"accuracy": accuracy.item(), "loss": F.cross_entropy(logits, images.test_y).item()}

    run.start(replica, optimizer, evaluate, metric=Metric("accuracy", better="higher"))
    for x, y in run.steps(loader):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        run.step(loss)


if __name__ == "__main__":
    main(train, ImageClassification)
