"""A job that a signal ends before it listens to any: what tests/test_slurm.py submits."""

import time

time.sleep(600)
