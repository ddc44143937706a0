"""Small models for the jobs, plain PyTorch modules."""

from hpcasync.models.cnn import CNN
from hpcasync.models.mlp import MLP

__all__ = ["CNN", "MLP"]
