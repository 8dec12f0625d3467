"""The check that no test leaves anything behind, and that no other test pays where one does."""

import gc
import socket
import subprocess
import sys

import psutil

from support.leftovers import Inventory


def test_a_child_and_a_socket_are_ended_so_that_collecting_them_warns_nobody() -> None:
    before = Inventory()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    near, far = socket.socketpair()
    before.end_leftovers()
    assert child.returncode is not None and not psutil.pid_exists(child.pid)
    assert near.fileno() == far.fileno() == -1
    del child, near, far
    gc.collect()  # a warning would be an error here


def test_what_was_there_before_stays() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        near, far = socket.socketpair()
        with near, far:
            before = Inventory()
            assert before.leftovers() == []
            before.end_leftovers()
            assert child.poll() is None
            near.sendall(b"x")
            assert far.recv(1) == b"x"
