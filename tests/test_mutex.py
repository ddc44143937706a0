"""Robust mutexes between real processes, one of which is killed with a mutex in its hands."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal

import pytest

from hpcasync.mpi.mutex import BYTES, Mutex


def shared_mutexes(count: int) -> tuple[mmap.mmap, list[Mutex]]:
    memory = mmap.mmap(-1, 4096)  # anonymous and shared: a forked child sees the same bytes
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mutexes = [Mutex(address + i * BYTES) for i in range(count)]
    for mutex in mutexes:
        mutex.create()
    return memory, mutexes


def in_child(action) -> int:
    """Fork, act, and return the child's wait status."""
    child = os.fork()
    if not child:
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_mutex_survives_the_death_of_its_holder():
    memory, mutexes = shared_mutexes(2)

    def die_holding() -> None:
        with mutexes[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        assert os.WTERMSIG(in_child(die_holding)) == signal.SIGKILL
        with mutexes[1]:
            memory[1000] = 1
    with mutexes[0]:
        memory[1000] += 1
    assert memory[1000] == 2


def test_increments_of_two_processes_all_count():
    memory, mutexes = shared_mutexes(1)
    number = ctypes.c_int64.from_buffer(memory, 2048)

    def count() -> None:
        for _ in range(5000):
            with mutexes[0]:
                number.value += 1

    child = os.fork()
    if not child:
        count()
        os._exit(0)
    count()
    assert os.waitpid(child, 0)[1] == 0
    assert number.value == 10_000


def test_what_is_no_mutex_is_an_error_and_not_a_hang():
    memory = mmap.mmap(-1, 4096)
    memory[:BYTES] = bytes([0xFF]) * BYTES
    with (
        pytest.raises(OSError, match=r"Invalid argument"),
        Mutex(ctypes.addressof(ctypes.c_char.from_buffer(memory))),
    ):
        pass
