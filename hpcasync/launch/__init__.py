"""From typed options to a running launcher, and what the environment tells the ranks it starts."""

from hpcasync.launch.command import command
from hpcasync.launch.execute import execute
from hpcasync.launch.launcher import Launcher, LauncherName, find_launcher

__all__ = ["Launcher", "LauncherName", "command", "execute", "find_launcher"]
