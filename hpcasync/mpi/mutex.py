"""Locks that live in memory shared by processes, and that survive the death of their holder.

POSIX robust mutexes, reached through ctypes: when a process dies with one in its hands, the next to lock it is told
(EOWNERDEAD) and goes on. MPI offers nothing like it: its accumulate lock stays with the dead. A waiter sleeps in the
kernel, so waiting costs no core.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

BYTES = 64  # at least sizeof(pthread_mutex_t) on Linux (40 on x86-64, 48 on AArch64), and a cache line of its own

_PROCESS_SHARED = _ROBUST = 1  # PTHREAD_PROCESS_SHARED and PTHREAD_MUTEX_ROBUST in glibc and musl
_ATTRIBUTE_BYTES = 64  # more than sizeof(pthread_mutexattr_t) anywhere

_libc = ctypes.CDLL(None)  # lets other threads of this process run meanwhile: for what may take long
_swift = ctypes.PyDLL(None)  # does not: to get the interpreter back can take longer than the call
for _library in (_libc, _swift):
    for _verb in ("init", "lock", "trylock", "unlock", "consistent"):
        getattr(_library, f"pthread_mutex_{_verb}").argtypes = [ctypes.c_void_p] * (2 if _verb == "init" else 1)


class Mutexes:
    """``count`` mutexes side by side from ``address`` on, in memory that must outlive this object."""

    def __init__(self, address: int, count: int) -> None:
        self._addresses = [address + i * BYTES for i in range(count)]

    def create(self) -> None:
        """Make the mutexes. By one process, before any other uses them."""
        attribute = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
        _check(_libc.pthread_mutexattr_init(attribute))
        _check(_libc.pthread_mutexattr_setpshared(attribute, _PROCESS_SHARED))
        _check(_libc.pthread_mutexattr_setrobust(attribute, _ROBUST))
        for address in self._addresses:
            _check(_libc.pthread_mutex_init(address, ctypes.addressof(attribute)))
        _check(_libc.pthread_mutexattr_destroy(attribute))

    @contextmanager
    def hold(self, index: int) -> Iterator[None]:
        """Hold mutex ``index``. What a dead holder left half done stays as it is: an addition that stopped midway."""
        address = self._addresses[index]
        code = _swift.pthread_mutex_trylock(address)
        if code == errno.EBUSY:
            code = _libc.pthread_mutex_lock(address)
        if code == errno.EOWNERDEAD:
            code = _libc.pthread_mutex_consistent(address)
        _check(code)
        try:
            yield
        finally:
            _check(_swift.pthread_mutex_unlock(address))


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))
