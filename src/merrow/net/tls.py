"""TLS for the connections of a listener: its certificates, and the handshake.

Certificates are files, which are replaced while the server runs. A client's first words are the moment to look: the
files' dates are asked for at most once a second, and what has changed is read, which takes a millisecond. Files that
cannot be used are reported, and the certificate in use stays.

Connections are accepted here, and not by an `asyncio.Server`, because that one does not say which handshakes are under
way: they count as connections, so that clients that begin and do not end them are bounded like any others, and they
end with the listener.
"""

import asyncio
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence

from merrow.core.clock import Clock
from merrow.net.service import LINGER_NS, Service
from merrow.settings import TlsSettings

_LOG = logging.getLogger("merrow.net")

_LOOK_NS = 10**9
_ACCEPT_RETRY_SECONDS = 1
# What OpenSSL says where there is something better to say.
_REASONS = {
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "EE_KEY_TOO_SMALL": "the key is too small",
    "CA_MD_TOO_WEAK": "the signature of the certificate is too weak",
}

_FileState = tuple[tuple[int, int, int] | None, ...]


class TlsError(Exception):
    """Certificates cannot be used; the text says which file, and why."""


class TlsContexts:
    """The TLS context of a listener, kept up to date.

    Args:
        settings: the files.

    Raises:
        TlsError: they cannot be used.
    """

    def __init__(self, settings: TlsSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._looked_ns = clock()
        self._state = self._read_state()
        self._current = build_context(settings)
        # The one that handshakes begin with; each is given the current one with the client's first words.
        self.context = self._current
        self.context.sni_callback = self._on_client_hello

    def _on_client_hello(self, connection: ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> None:
        now_ns = self._clock()
        if now_ns - self._looked_ns >= _LOOK_NS:
            self._looked_ns = now_ns
            self._reload_if_changed()
        if self._current is not context:
            connection.context = self._current

    def _reload_if_changed(self) -> None:
        state = self._read_state()
        if state == self._state:
            return
        self._state = state
        try:
            self._current = build_context(self._settings)
        except TlsError as error:
            _LOG.error("the certificate stays as it was: %s", error)
        else:
            _LOG.info("'%s' has changed, and is used for new connections", self._settings.certificate_file)

    def _read_state(self) -> _FileState:
        settings = self._settings
        return tuple(
            _state_of(path)
            for path in (settings.certificate_file, settings.key_file, settings.root_certificate_file)
            if path
        )


def _state_of(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def build_context(settings: TlsSettings) -> ssl.SSLContext:
    """A server's context from files as they are now.

    Raises:
        TlsError: they cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    _check_pem(settings.certificate_file, "CERTIFICATE", "certificate")
    _check_pem(settings.key_file, "PRIVATE KEY", "private key")
    try:
        context.load_cert_chain(settings.certificate_file, settings.key_file, password=_refuse_password)
    except _EncryptedKeyError:
        raise TlsError(f"the private key in '{settings.key_file}' is encrypted; it must not be") from None
    except (OSError, ValueError) as error:
        raise TlsError(
            f"the certificate in '{settings.certificate_file}' and the private key in '{settings.key_file}' cannot be "
            f"used: {_reason_of(error)}"
        ) from None
    if settings.is_mutual:
        text = _check_pem(settings.root_certificate_file, "CERTIFICATE", "root certificate")
        try:
            context.load_verify_locations(cadata=text)
        except (OSError, ValueError) as error:
            raise TlsError(
                f"the root certificate in '{settings.root_certificate_file}' cannot be used: {_reason_of(error)}"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that goes on where an earlier one ended would not be looked at again.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


class _EncryptedKeyError(Exception):
    pass


def _refuse_password() -> str:
    # Without this, OpenSSL would ask the terminal.
    raise _EncryptedKeyError


def _check_pem(path: str, label: str, what: str) -> str:
    """The text of a file that must have a PEM block of this kind."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise TlsError(f"cannot read the {what} in '{path}': {error.strerror}") from None
    if f"{label}-----" not in text or "-----BEGIN " not in text:
        raise TlsError(f"there is no {what} in PEM form in '{path}'")
    return text


def _reason_of(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error)
    return _REASONS.get(reason, reason)


def can_receive_directly(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a connection over TLS may change the kind of its protocol while it receives.

    asyncio's own loop before Python 3.11 goes on with the old one for what it has decrypted already.
    """
    return sys.version_info >= (3, 11) or not isinstance(loop, asyncio.BaseEventLoop)


class TlsAcceptor:
    """Accepts the connections of one listener, and shows them to `make_connection` when their TLS is set up.

    Listening begins with `start`, ends with `stop_accepting`; `close` ends the handshakes under way, too.
    """

    def __init__(
        self,
        service: Service,
        contexts: TlsContexts,
        make_connection: Callable[[], asyncio.BaseProtocol],
        sockets: Sequence[socket.socket],
    ) -> None:
        self._service = service
        self._contexts = contexts
        self._make_connection = make_connection
        self._sockets = sockets
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._accepting = [self._service.loop.create_task(self._accept(listening)) for listening in self._sockets]

    def stop_accepting(self) -> None:
        for task in self._accepting:
            task.cancel()

    async def close(self) -> None:
        """Wait until nothing of this is left."""
        self.stop_accepting()
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._accepting, *self._handshakes, return_exceptions=True)

    @property
    def handshake_count(self) -> int:
        return len(self._handshakes)

    async def _accept(self, listening: socket.socket) -> None:
        service = self._service
        with listening:
            while True:
                try:
                    accepted, _ = await service.loop.sock_accept(listening)
                except ConnectionError:
                    # The client has left again.
                    continue
                except OSError as error:
                    # No descriptors, or no memory: some will be free again.
                    _LOG.error("accepting connections failed: %s", error)
                    await asyncio.sleep(_ACCEPT_RETRY_SECONDS)
                    continue
                if len(service.connections) + len(self._handshakes) >= service.limits.max_connections:
                    accepted.close()
                    continue
                task = service.loop.create_task(self._shake_hands(accepted))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        service = self._service
        timeouts = {"ssl_handshake_timeout": service.limits.receive_timeout_ns / 10**9}
        if sys.version_info >= (3, 11):
            timeouts["ssl_shutdown_timeout"] = LINGER_NS / 10**9
        try:
            await service.loop.connect_accepted_socket(
                self._make_connection, accepted, ssl=self._contexts.context, **timeouts
            )
        except (OSError, asyncio.TimeoutError) as error:
            # A certificate was not to the taste of one of the two, or the client speaks plain text, or left.
            _LOG.debug("TLS handshake failed: %s", error)
