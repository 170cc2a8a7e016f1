"""A server as a process: what ends it, and with which exit code. The signals are real ones, to this process."""

import asyncio
import logging
import os
import signal

import pytest

from merrow.cli import server_process
from merrow.cli.server_process import run
from merrow.net.loop import new_event_loop
from merrow.settings import LogSettings, NetworkSettings, RepositorySettings, Settings
from merrow.testing.repository_builder import RepositoryBuilder


@pytest.fixture(autouse=True, scope="module")
def first_loop():
    """uvloop opens a pipe with its first loop, and keeps it as long as the process lives."""
    new_event_loop().close()


@pytest.fixture(autouse=True)
def heaps(monkeypatch):
    """The choice of one heap would hold for the tests that follow, too."""
    monkeypatch.setattr(server_process, "use_one_heap", lambda: None)


def make_settings(repository, **log):
    return Settings(
        exit_timeout_seconds=5,
        repository=RepositorySettings(model_repositories=(str(repository),)),
        network=NetworkSettings(http_port=0, grpc_port=0, metrics_port=0),
        log=LogSettings(**log),
    )


class SignalAt(logging.Handler):
    """Sends this process a signal when a line of the log begins so."""

    def __init__(self, number, beginning):
        super().__init__()
        self.number = number
        self.beginning = beginning

    def emit(self, record):
        if record.getMessage().startswith(self.beginning):
            os.kill(os.getpid(), self.number)


@pytest.fixture
def signal_at():
    """Have a signal sent at a line of the process's own."""
    logger = logging.getLogger("merrow.cli.server_process")
    handlers = []

    def add(number, beginning):
        handlers.append(SignalAt(number, beginning))
        logger.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        logger.removeHandler(handler)


def test_a_log_that_cannot_be_opened_ends_the_start(tmp_path, capsys):
    path = tmp_path / "nowhere" / "server.log"

    assert run(make_settings(tmp_path, file=str(path))) == 1

    assert capsys.readouterr().err == (
        f"error: cannot open the log file: [Errno 2] No such file or directory: '{path}'\n"
    )


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(tmp_path, capsys):
    RepositoryBuilder(tmp_path / "models").add("broken", 'backend: "nope"')
    path = tmp_path / "server.log"

    assert run(make_settings(tmp_path / "models", file=str(path)), ["first this"]) == 1

    assert capsys.readouterr().err == "error: creating server: Internal - failed to load all models\n"
    first, second, *_, last = path.read_text().splitlines()
    assert '] "merrow ' in first
    assert second.endswith('] "first this"')
    assert last.endswith('] "creating server: Internal - failed to load all models"')


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_ends_a_server_that_serves(tmp_path, capsys, signal_at, number, name):
    RepositoryBuilder(tmp_path).add_identity("m")
    previous = signal.getsignal(number)
    signal_at(number, "Serving, ")

    assert run(make_settings(tmp_path)) == 0

    log = capsys.readouterr().err
    assert "Only this machine can connect; --address=0.0.0.0 lets others in" in log
    assert f"signal ({name}) received: no new requests; those accepted have 5 s. A second signal exits at once" in log
    assert log.rstrip().endswith('"stopped"')
    assert signal.getsignal(number) is previous


@pytest.mark.slow
def test_a_signal_ends_a_server_that_still_starts(tmp_path, capsys, signal_at, monkeypatch):
    RepositoryBuilder(tmp_path).add_identity("m")

    class Starting(server_process.Server):
        """Its start takes as long as nobody gives it up."""

        async def __aenter__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    monkeypatch.setattr(server_process, "Server", Starting)

    assert run(make_settings(tmp_path)) == 0
    assert "signal (SIGTERM) received while starting" in capsys.readouterr().err
