import ctypes
import subprocess
import sys

import pytest

from merrow.engine import memory

# Loads and frees on other threads, as models do, and says how much more than before is held.
SCRIPT = """
import sys, threading
from merrow.engine.memory import return_memory, use_one_heap

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def use():
    blocks = [bytearray(100_000) for _ in range(400)]

use_one_heap()
before = held()
for _ in range(5):
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
return_memory()
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_what_threads_have_freed_is_returned():
    given = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)

    assert int(given.stdout) < 8 * 2**20


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_where_the_c_library_is_another_nothing_happens(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    memory.use_one_heap()
    memory.return_memory()
