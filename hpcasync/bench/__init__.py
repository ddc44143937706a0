"""Benchmarks: strategies, verbs of the World, and the peers they are compared with, measured in one run."""
