"""The place can be imported where it cannot run."""

import subprocess
import sys

# What Windows lacks, of what the place uses.
WITHOUT = """
import asyncio, os, select, signal, socket, subprocess, sys, tempfile
for name in ("fork", "memfd_create", "killpg", "setpgid", "waitid", "MFD_CLOEXEC", "getppid"):
    delattr(os, name)
for name in ("AF_UNIX", "SCM_RIGHTS", "CMSG_SPACE", "MSG_CMSG_CLOEXEC", "MSG_CTRUNC"):
    delattr(socket, name)
for name in ("SIGKILL", "SIGCHLD", "set_wakeup_fd"):
    delattr(signal, name)
del select.poll
sys.modules["fcntl"] = None
"""


def test_without_processes_the_place_says_so():
    code = WITHOUT + (
        "import merrow.places.process.child, merrow.places.process.fork_server, merrow.backends.python.backend\n"
        "from merrow.places.process.host import ProcessPlace\n"
        "print(ProcessPlace.is_available())\n"
    )
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    result = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=False)

    assert (result.stdout, result.stderr) == ("False\n", "")
