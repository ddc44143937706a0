"""Asynchronous neural-network training on MPI clusters."""

__version__ = "0.1.0"
