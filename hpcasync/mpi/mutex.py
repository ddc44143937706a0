"""Locks that live in memory shared by processes, and that survive the death of their holder.

POSIX robust mutexes, reached through ctypes: when a process dies with one in its hands, the next to lock it is told
(EOWNERDEAD) and goes on. MPI offers nothing like it: its accumulate lock stays with the dead. A waiter sleeps in the
kernel, so waiting costs no core.
"""

from __future__ import annotations

import ctypes
import errno
import os

BYTES = 64  # at least sizeof(pthread_mutex_t) on Linux (40 on x86-64, 48 on AArch64), and a cache line of its own

_PROCESS_SHARED = _ROBUST = 1  # PTHREAD_PROCESS_SHARED and PTHREAD_MUTEX_ROBUST in glibc and musl
_ATTRIBUTE_BYTES = 64  # more than sizeof(pthread_mutexattr_t) anywhere

_libc = ctypes.CDLL(None)  # lets other threads of this process run meanwhile: for what may take long
_swift = ctypes.PyDLL(None)  # does not: to get the interpreter back can take longer than the call
for _library in (_libc, _swift):
    for _verb in ("init", "lock", "trylock", "unlock", "consistent"):
        getattr(_library, f"pthread_mutex_{_verb}").argtypes = [ctypes.c_void_p] * (2 if _verb == "init" else 1)
_try_lock, _unlock = _swift.pthread_mutex_trylock, _swift.pthread_mutex_unlock


class Mutex:
    """The mutex of :data:`BYTES` bytes at ``address``, in memory that must outlive this object: ``with mutex: ...``.

    What a dead holder left half done stays as it is: an addition that stopped midway.
    """

    def __init__(self, address: int) -> None:
        self._address = address

    def create(self) -> None:
        """Make the mutex. By one process, before any other uses it."""
        attribute = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
        _check(_libc.pthread_mutexattr_init(attribute))
        _check(_libc.pthread_mutexattr_setpshared(attribute, _PROCESS_SHARED))
        _check(_libc.pthread_mutexattr_setrobust(attribute, _ROBUST))
        _check(_libc.pthread_mutex_init(self._address, ctypes.addressof(attribute)))
        _check(_libc.pthread_mutexattr_destroy(attribute))

    def __enter__(self) -> None:
        code = _try_lock(self._address)
        if code == errno.EBUSY:
            code = _libc.pthread_mutex_lock(self._address)
        if code == errno.EOWNERDEAD:
            code = _libc.pthread_mutex_consistent(self._address)
        _check(code)

    def __exit__(self, *_: object) -> None:
        _check(_unlock(self._address))


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))
