"""What Python models take from the system, under a real server: no /dev/shm, memory that is given back."""

import contextlib
import http.client
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import merrow
from merrow.places.process.arena import TRIM_AFTER_NS
from merrow.places.process.system import has_memfd, is_available
from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer
from tests.e2e.test_python_supervision import processes_below

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]

MIB = 1 << 20
SMALL = np.arange(16, dtype=np.float32)
LARGE = np.arange(4 * MIB, dtype=np.float32)

# Runs the rest of the command where /dev/shm is there but takes nothing.
WITHOUT_SHM = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro,size=4k none /dev/shm && exec "$@"', "sh")

WITHOUT_MEMFD = """\
import errno
import os


def refuse(name, flags=0):
    raise OSError(errno.ENOSYS, "not here")


os.memfd_create = refuse
"""


def infer(server: RunningServer, array: np.ndarray) -> None:
    """The identity of an array, checked; small tensors and large ones take different ways."""
    tensor = (
        f'"name":"INPUT0","datatype":"FP32","shape":[{array.size}],"parameters":{{"binary_data_size":{array.nbytes}}}'
    )
    head = f'{{"inputs":[{{{tensor}}}],"parameters":{{"binary_data_output":true}}}}'.encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    with contextlib.closing(http.client.HTTPConnection(server.http_url, timeout=60)) as connection:
        connection.request("POST", "/v2/models/python_identity/infer", head + array.tobytes(), headers)
        response = connection.getresponse()
        body = response.read()
    assert response.status == 200, body
    assert np.array_equal(np.frombuffer(body[int(response.headers["Inference-Header-Content-Length"]) :], "f4"), array)


@pytest.fixture
def repository(tmp_path: Path) -> RepositoryBuilder:
    repository = RepositoryBuilder(tmp_path / "models")
    repository.add_python_identity(dims=(-1,))
    return repository


def shared_byte_size(server: RunningServer) -> int:
    """Shared memory of the server and its model, mapped by either."""
    total = 0
    for process_id in (server.pid, *processes_below(server.pid)):
        for line in Path(f"/proc/{process_id}/maps").read_text().splitlines():
            if "merrow" in line.rpartition(" (deleted)")[0].rpartition("/")[2]:
                start, end = (int(number, 16) for number in line.split()[0].split("-"))
                total += end - start
    return total


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_dev_shm_is_not_needed(repository):
    if subprocess.run([*WITHOUT_SHM, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount anything")
    with RunningServer(repository.path, command_prefix=WITHOUT_SHM) as server:
        shm = Path(f"/proc/{server.pid}/root/dev/shm")
        assert os.statvfs(shm).f_flag & os.ST_RDONLY
        infer(server, SMALL)
        infer(server, LARGE)
        assert list(shm.iterdir()) == []


def test_memfd_is_not_needed(repository, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_MEMFD)
    (tmp_path / "temporary").mkdir()
    source = str(Path(merrow.__file__).parents[1])
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), source]),
        "TMPDIR": str(tmp_path / "temporary"),
    }
    with RunningServer(repository.path, environment=environment) as server:
        infer(server, SMALL)
        infer(server, LARGE)
        assert "/memfd:" not in Path(f"/proc/{server.pid}/maps").read_text()
        assert re.search(rf"{tmp_path}/temporary/merrow-\S+ \(deleted\)", Path(f"/proc/{server.pid}/maps").read_text())
        # Files without names: nothing to find, and nothing to leave behind.
        assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.skipif(not has_memfd(), reason="counts memory by its name")
def test_memory_starts_small_grows_and_is_given_back(repository):
    with RunningServer(repository.path) as server:
        infer(server, SMALL)
        before = shared_byte_size(server)
        assert before <= 64 * 1024
        infer(server, LARGE)
        grown = shared_byte_size(server)
        assert grown >= 2 * LARGE.nbytes

        deadline = time.monotonic() + TRIM_AFTER_NS / 1e9 * 3 + 5
        while (after := shared_byte_size(server)) > 4 * MIB:
            assert time.monotonic() < deadline, f"{after} bytes of {grown} are still mapped"
            time.sleep(0.1)
        infer(server, SMALL)
