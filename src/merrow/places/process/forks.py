"""What becomes of a process that a model forks.

It has copies of the sockets that join the model's own process to the server, and must not speak through them. Its
copies are cut off, and what it logs goes to standard error, which the server reads as well. Signals that a model's
process leaves to the server end it: `multiprocessing` ends its workers so.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

from merrow.places.process.system import ignore_signal


def cut_off_forks(sockets: Sequence[socket.socket]) -> None:
    """From now on, what this process forks finds these sockets closed by the other side."""

    def cut_off() -> None:
        here, there = socket.socketpair()
        there.close()
        for each in sockets:
            # The descriptor stays taken: nothing that is opened later may get what was meant for the server.
            os.dup2(here.fileno(), each.fileno(), inheritable=False)
        here.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is ignore_signal:
                signal.signal(number, signal.SIG_DFL)
        logger = logging.getLogger("merrow")
        # Not closed: another thread of the original may have held the lock of one.
        logger.handlers[:] = [logging.StreamHandler(sys.stderr)]

    os.register_at_fork(after_in_child=cut_off)
