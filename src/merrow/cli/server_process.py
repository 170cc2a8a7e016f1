"""A server as a process of its own: its log, its event loop, the signals that end it, and its exit code.

SIGTERM or SIGINT    while starting: the start is given up; while serving: no new requests, and those accepted have
                     `--exit-timeout-secs`
a second one         the process ends at once, as it does when the time is over
"""

import asyncio
import contextlib
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence

import merrow
from merrow.engine.memory import use_one_heap
from merrow.front_doors import PROTOCOL_VERSION
from merrow.net.loop import new_event_loop
from merrow.observe.logs import ServerLog, start_logging, stop_logging
from merrow.server import Server, ServerStartError
from merrow.settings import NetworkSettings, Settings

_LOG = logging.getLogger("merrow.cli.server_process")


def run(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        warnings: what the log is to say first.

    Returns:
        The exit code: 0 after a clean end, 1 if the server could not start. Where requests were still running when
        the time to exit was over, the process ends here, with 1.
    """
    try:
        log = start_logging(settings.log)
    except OSError as error:
        print(f"error: cannot open the log file: {error}", file=sys.stderr)
        return 1
    use_one_heap()
    loop = new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        _log_greeting(warnings)
        is_clean = loop.run_until_complete(_serve(settings, log))
        if not is_clean:
            _LOG.error("Exit timeout expired. Exiting immediately.")
            log.flush()
            # Threads that still execute a model cannot be ended in any other way; child processes end with this one.
            os._exit(1)
        loop.run_until_complete(loop.shutdown_default_executor())
        return 0
    except ServerStartError as error:
        if settings.log.file:
            _LOG.error("%s", error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        stop_logging(log)


async def _serve(settings: Settings, log: ServerLog) -> bool:
    """Start, wait for a signal, stop; whether it all ended in time."""
    start_ns = time.monotonic_ns()
    server = Server(settings, log)
    with _termination_signals() as signals:
        starting = asyncio.ensure_future(server.__aenter__())
        signalled = asyncio.ensure_future(signals.get())
        await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            _LOG.info("signal (%s) received while starting", signalled.result())
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return True
        if starting.exception() is not None:
            signalled.cancel()
            await starting
        _log_serving(settings.network, time.monotonic_ns() - start_ns)
        name = await signalled
        _LOG.info(
            "signal (%s) received: no new requests; those accepted have %d s. A second signal exits at once",
            name,
            settings.exit_timeout_seconds,
        )
        impatient = asyncio.ensure_future(signals.get())
        stopping = asyncio.ensure_future(server.stop())
        await asyncio.wait((stopping, impatient), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            return False
        impatient.cancel()
        if stopping.result():
            _LOG.info("stopped")
        return stopping.result()


@contextlib.contextmanager
def _termination_signals() -> "Iterator[asyncio.Queue[str]]":
    """The names of the signals that ask the process to end, as they come."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[str] = asyncio.Queue()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        try:
            loop.add_signal_handler(number, received.put_nowait, number.name)
        except NotImplementedError:  # Windows
            signal.signal(
                number,
                lambda raised, _: loop.call_soon_threadsafe(received.put_nowait, signal.Signals(raised).name),
            )
    try:
        yield received
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, previous[number])


def _log_greeting(warnings: Sequence[str]) -> None:
    _LOG.info(
        "merrow %s (protocol of Triton %s), Python %s, %s, %s CPUs, process %d",
        merrow.__version__,
        PROTOCOL_VERSION,
        platform.python_version(),
        platform.platform(terse=True),
        os.cpu_count(),
        os.getpid(),
    )
    for warning in warnings:
        _LOG.warning("%s", warning)


def _log_serving(network: NetworkSettings, start_ns: int) -> None:
    addresses = {
        address
        for is_open, address in (
            (network.port is not None, network.address),
            (network.allow_http, network.http_address),
            (network.allow_grpc, network.grpc_address),
        )
        if is_open
    }
    if addresses and addresses <= {"127.0.0.1", "::1", "localhost"}:
        _LOG.info("Only this machine can connect; --address=0.0.0.0 lets others in")
    _LOG.info("Serving, %.2f s after the start", start_ns / 1e9)
