"""From typed options to a running launcher, and what the environment tells the ranks it starts."""

from hpcasync.launch.command import command, heterogeneous
from hpcasync.launch.display import Display
from hpcasync.launch.execute import execute
from hpcasync.launch.launcher import Binding, Launcher, LauncherName, find_launcher

__all__ = ["Binding", "Display", "Launcher", "LauncherName", "command", "execute", "find_launcher", "heterogeneous"]
