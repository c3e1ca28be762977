"""Interrupts: what may be left halfway, and what not."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from i3d.parallel.process import terminated_cleanly, workers_start


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_the_block(sent):
    done = []
    before = signal.getsignal(sent)
    with pytest.raises(KeyboardInterrupt), terminated_cleanly():
        with workers_start():
            os.kill(os.getpid(), sent)
            done.append("the rest of the block")
        done.append("what follows")
    assert done == ["the rest of the block"]
    assert signal.getsignal(sent) == before


def test_other_threads_need_no_protection():
    done = []

    def work():
        with workers_start():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


DEAF = """
import pathlib, signal
from multiprocessing import forkserver
from i3d.parallel.process import start_fork_server
start_fork_server(["json"])
print(forkserver._forkserver._forkserver_pid, flush=True)
input()
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals are looked up in /proc")
def test_signals_to_all_processes_do_not_reach_the_fork_server():
    """While it imports it would print where Ctrl-C came; without it no worker starts."""
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    status = Path("/proc", process.stdout.readline().strip(), "status").read_text()
    masks = dict(line.split(":", 1) for line in status.splitlines())
    out, _ = process.communicate("\n", timeout=60)
    for sent in (signal.SIGINT, signal.SIGTERM):
        assert int(masks["SigBlk"], 16) >> (sent - 1) & 1
    assert out == "set()\n"  # in this process nothing stays blocked
