"""Run a command that ends when its parent does: python tied.py TERM PARENT COMMAND ...

A launcher whose `hpcasync run` was killed by SIGKILL would go on for ever, and nobody would see it. So the kernel sends
it SIGTERM then, upon which it ends its ranks, or SIGKILL where SIGTERM is blocked.

Uses nothing but the standard library: it is run as a file, before anything else.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    number = signal.Signals[f"SIG{sys.argv[1]}"]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() == int(sys.argv[2]):  # it has not died before
        os.execvp(sys.argv[3], sys.argv[3:])
    sys.exit(1)
