import subprocess
import sys

import pytest

from merrow.places.process.system import is_available

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]

CODE = """
import logging, os, socket
from merrow.places.process.forks import cut_off_forks

here, there = socket.socketpair()
other = socket.socket(fileno=os.dup(here.fileno()))
logging.getLogger("merrow").addHandler(logging.NullHandler())
cut_off_forks([here, other])
if os.fork() == 0:
    for each in (here, other):
        try:
            each.send(b"from the copy")
        except BrokenPipeError:
            logging.getLogger("merrow.python").error("cut off")
    assert not os.get_inheritable(here.fileno())
    os._exit(0)
os.wait()
here.send(b"from the model")
print(there.recv(100))
"""


def test_a_fork_cannot_speak_through_the_sockets_of_the_original():
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-c", path + CODE], capture_output=True, text=True, check=False)

    assert done.stdout == "b'from the model'\n"
    assert done.stderr == "cut off\ncut off\n"
