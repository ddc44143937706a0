"""From typed options to a running mpirun, and what the environment tells the ranks it starts."""

from hpcasync.launch.command import command
from hpcasync.launch.execute import execute
from hpcasync.launch.launcher import Launcher, find_launcher

__all__ = ["Launcher", "command", "execute", "find_launcher"]
