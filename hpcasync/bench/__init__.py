"""Benchmarks: strategies, verbs of the World, and the peers they are compared with, measured in one run."""

from hpcasync.bench.main import bench

__all__ = ["bench"]
