"""TLS: handshakes, protocols, certificates of clients, files that are wrong or change, and memory."""

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import sys
import threading
import time

import pytest

from merrow.net import tls as tls_module
from merrow.net.tls import TlsContexts, TlsError
from merrow.settings import ConnectionLimits, TlsSettings
from merrow.wire.http2 import frames
from tests.certificates import Authority
from tests.net.serving import TIMEOUT_SECONDS, ServerThread, read_exactly, read_until, serving
from tests.net.test_listener import grpc_request

EACH_LOOP = pytest.mark.parametrize("has_uvloop", [True, False], ids=["uvloop", "asyncio"])
BODY = bytes(range(256)) * 16 * 1024  # 4 MB


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def tls(authority):
    certificate, key = authority.sign("server")
    return TlsSettings(str(certificate), str(key))


def mutual(tls, authority):
    return TlsSettings(tls.certificate_file, tls.key_file, str(authority.certificate_file), is_mutual=True)


def client_context(authority, identity=None, protocols=()):
    context = ssl.create_default_context(cafile=authority.certificate_file)
    if identity is not None:
        context.load_cert_chain(*identity)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def connect(server, context):
    plain = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_SECONDS)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise


def post(client, body, path=b"/"):
    client.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (path, len(body)) + body)
    read_until(client, b"\r\n\r\n")
    return read_exactly(client, len(body))


def is_closed(client):
    """Whether the server closes, with whatever last words."""
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def is_refused(server, context):
    """Whether a client gets no answer. In TLS 1.3 it hears of that only when it reads."""
    try:
        with connect(server, context) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return client.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


@EACH_LOOP
def test_requests_large_and_small(has_uvloop, authority, tls):
    with serving(has_uvloop=has_uvloop, tls=tls) as server, connect(server, client_context(authority)) as client:
        assert client.version() == "TLSv1.3"
        for body in (b"", b"a", BODY, BODY[:70_000], b"b", BODY):
            assert post(client, body) == body
        client.sendall(b"BAD\r\n\r\n")
        assert read_until(client, b"\r\n") == b"HTTP/1.1 400 Bad Request\r\n"


@EACH_LOOP
@pytest.mark.parametrize(
    ("offered", "chosen"), [((), None), (("h2",), "h2"), (("http/1.1",), "http/1.1"), (("http/1.1", "h2"), "h2")]
)
def test_the_protocol_is_agreed_on(has_uvloop, authority, tls, offered, chosen):
    context = client_context(authority, protocols=offered)
    with serving(has_uvloop=has_uvloop, tls=tls) as server, connect(server, context) as client:
        assert client.selected_alpn_protocol() == chosen
        if chosen == "h2":
            client.sendall(frames.PREFACE + frames.encode_settings({}) + grpc_request(1))
            assert b"hello" in read_until(client, b"grpc-status\x010")
        else:
            assert post(client, b"a") == b"a"


@EACH_LOOP
def test_a_request_that_comes_with_the_last_word_of_the_handshake_is_served(has_uvloop, authority, tls):
    """Both in one segment: what is decrypted must wait for the connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with serving(has_uvloop=has_uvloop, tls=tls) as server, server.connect() as plain:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        client.write(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
        plain.sendall(outgoing.read())
        received = b""
        while not received.endswith(b"hello"):
            try:
                received += client.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(plain.recv(65536))


@EACH_LOOP
def test_clients_show_certificates_where_they_must(has_uvloop, authority, tls, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    with serving(has_uvloop=has_uvloop, tls=mutual(tls, authority)) as server:
        with connect(server, client_context(authority, authority.sign("client"))) as client:
            assert post(client, b"a") == b"a"
        for identity in (None, stranger.sign("impostor")):
            assert is_refused(server, client_context(authority, identity))
        assert server.application.request_count == 1


@EACH_LOOP
def test_plain_text_and_old_versions_are_not_served(has_uvloop, authority, tls):
    with serving(has_uvloop=has_uvloop, tls=tls) as server:
        with server.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert is_closed(client)
        context = client_context(authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with connect(server, context) as client:
            assert post(client, b"a") == b"a"
        assert server.application.request_count == 1


@EACH_LOOP
def test_a_handshake_that_does_not_end_counts_as_a_connection_and_ends_in_time(has_uvloop, authority, tls):
    limits = ConnectionLimits(max_connections=1, receive_timeout_ns=300 * 10**6)
    with serving(limits, has_uvloop=has_uvloop, tls=tls) as server, server.connect() as silent:
        server.pass_until(lambda: server.listener.connection_count == 1)
        with server.connect() as second:
            assert second.recv(1) == b""
        assert silent.recv(1) == b""
        server.pass_until(lambda: server.listener.connection_count == 0)


@EACH_LOOP
def test_a_shutdown_does_not_wait_for_handshakes(has_uvloop, authority, tls):
    with serving(has_uvloop=has_uvloop, tls=tls) as server, server.connect() as silent:
        server.pass_until(lambda: server.listener.connection_count == 1)
        start = time.monotonic()
        server.run(server.listener.shutdown(time.monotonic_ns() + 10 * 10**9))
        assert time.monotonic() - start < 5
        assert is_closed(silent)


@EACH_LOOP
def test_connections_end_with_the_server_while_a_request_is_served(has_uvloop, authority, tls):
    with serving(has_uvloop=has_uvloop, tls=tls) as server, connect(server, client_context(authority)) as client:
        client.sendall(b"POST /hold HTTP/1.1\r\nContent-Length: 1\r\n\r\na")
        server.wait_for(lambda: server.application.held)
        stopping = threading.Thread(
            target=lambda: server.run(server.listener.shutdown(time.monotonic_ns() + 10 * 10**9))
        )
        stopping.start()
        server.pass_until(lambda: server.listener._service.is_draining)
        server.call(lambda: server.application.held[0].respond(200, (), (b"answer",)))
        assert read_until(client, b"answer").startswith(b"HTTP/1.1 200 OK\r\n")
        client.close()
        stopping.join()


def serial_number(server, context):
    with connect(server, context) as client:
        return client.getpeercert()["serialNumber"]


@EACH_LOOP
def test_certificates_that_change_are_used_for_new_connections(has_uvloop, authority, tls, tmp_path, caplog):
    now_ns = [0]
    context = client_context(authority)
    with serving(has_uvloop=has_uvloop, tls=tls, clock=lambda: now_ns[0]) as server:
        first = serial_number(server, context)
        with connect(server, context) as old:
            authority.sign("server")
            now_ns[0] += 2 * 10**9
            second = serial_number(server, context)
            assert post(old, b"a") == b"a"
        assert second != first

        with open(tls.certificate_file, "w") as file:
            file.write("nothing")
        now_ns[0] += 2 * 10**9
        assert serial_number(server, context) == second
        os.unlink(tls.certificate_file)
        now_ns[0] += 2 * 10**9
        assert serial_number(server, context) == second
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [
        f"the certificate stays as it was: there is no certificate in PEM form in '{tls.certificate_file}'",
        f"the certificate stays as it was: cannot read the certificate in '{tls.certificate_file}': "
        "No such file or directory",
    ]


def test_another_authority_for_clients_is_used_too(authority, tls, tmp_path):
    now_ns = [0]
    client_identity = authority.sign("client")
    settings = mutual(tls, authority)
    with serving(tls=settings, clock=lambda: now_ns[0]) as server:
        with connect(server, client_context(authority, client_identity)) as client:
            assert post(client, b"a") == b"a"
        context = client_context(authority, client_identity)
        stranger = Authority(tmp_path, "stranger")
        authority.certificate_file.write_bytes(stranger.certificate_file.read_bytes())
        now_ns[0] += 2 * 10**9
        assert is_refused(server, context)


def test_what_is_wrong_with_files_is_told(authority, tls, tmp_path):
    missing = str(tmp_path / "missing.pem")
    other_certificate, other_key = map(str, authority.sign("other"))
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    encrypted = tmp_path / "encrypted.key"
    encrypt_key(other_key, encrypted)
    cases = {
        TlsSettings(missing, tls.key_file): f"cannot read the certificate in '{missing}': No such file or directory",
        TlsSettings(tls.certificate_file, missing): f"cannot read the private key in '{missing}': "
        "No such file or directory",
        TlsSettings(tls.key_file, tls.key_file): f"there is no certificate in PEM form in '{tls.key_file}'",
        TlsSettings(tls.certificate_file, tls.certificate_file): "there is no private key in PEM form in "
        f"'{tls.certificate_file}'",
        TlsSettings(tls.certificate_file, other_key): f"the certificate in '{tls.certificate_file}' and the private "
        f"key in '{other_key}' cannot be used: the key is not that of the certificate",
        TlsSettings(other_certificate, str(encrypted)): f"the private key in '{encrypted}' is encrypted; it must not "
        "be",
        TlsSettings(tls.certificate_file, tls.key_file, missing, True): "cannot read the root certificate in "
        f"'{missing}': No such file or directory",
    }
    for settings, text in cases.items():
        with pytest.raises(TlsError) as raised:
            TlsContexts(settings, time.monotonic_ns)
        assert str(raised.value) == text
    for settings in (
        TlsSettings(str(broken), tls.key_file),
        TlsSettings(tls.certificate_file, tls.key_file, str(broken), True),
    ):
        with pytest.raises(TlsError, match=f"'{broken}'.* cannot be used: "):
            TlsContexts(settings, time.monotonic_ns)


def encrypt_key(source, target):
    from cryptography.hazmat.primitives import serialization

    with open(source, "rb") as file:
        key = serialization.load_pem_private_key(file.read(), None)
    target.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


@EACH_LOOP
@pytest.mark.slow
@pytest.mark.parametrize("is_tls", [True, False], ids=["tls", "plain"])
def test_a_large_answer_to_a_slow_client_does_not_fill_the_memory(has_uvloop, is_tls, authority, tls):
    """100 MB that the client does not read: encrypted or copied at once, they would be in memory twice over."""
    body = bytes(100_000)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(has_uvloop=has_uvloop, tls=tls if is_tls else None))
        client = stack.enter_context(connect(server, client_context(authority)) if is_tls else server.connect())
        assert post(client, b"a") == b"a"
        client.sendall(b"POST /many HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = read_until(client, b"\r\n\r\n")
        assert b"Content-Length: 100000000" in head
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        [connection] = server.call(lambda: list(server.listener._service.connections))
        if server.listener._service.paces_output:
            # Elsewhere the transport holds views.
            assert server.call(connection.transport.get_write_buffer_size) < 8_000_000
        received = 0
        while received < 100_000_000:
            received += len(client.recv(1_000_000))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_failures_to_accept_are_outlived(monkeypatch, caplog, tls):
    """A client that has left again, and a lack of descriptors."""
    monkeypatch.setattr(tls_module, "_ACCEPT_RETRY_SECONDS", 0)
    outcomes = [ConnectionAbortedError(), OSError(24, "Too many open files")]

    class Loop(asyncio.SelectorEventLoop):
        async def sock_accept(self, sock):
            if outcomes:
                raise outcomes.pop(0)
            return await super().sock_accept(sock)

    loop = Loop()
    server = ServerThread(ConnectionLimits(), loop, tls=tls)
    server.start()
    try:
        server.pass_until(lambda: not outcomes)
        with server.connect():
            server.pass_until(lambda: server.listener.connection_count == 1)
    finally:
        server.stop()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "accepting connections failed: [Errno 24] Too many open files"
    ]


def test_which_loops_change_protocols_while_they_receive():
    loop = asyncio.new_event_loop()
    try:
        assert tls_module.can_receive_directly(loop) == (sys.version_info >= (3, 11))
    finally:
        loop.close()
    assert tls_module.can_receive_directly(object())
