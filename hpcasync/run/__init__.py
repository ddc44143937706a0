"""The life of one job: options, steps, evaluations, and the folder it leaves behind."""

from hpcasync.run.main import main
from hpcasync.run.metrics import Metric
from hpcasync.run.options import Options
from hpcasync.run.run import Run

__all__ = ["Metric", "Options", "Run", "main"]
