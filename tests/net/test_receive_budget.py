"""The bound on all bodies that are being received: by value, in memory, and over both protocols at once."""

import gc

import pytest

from merrow.net.body import BodyBuffer, BudgetShare, ReceiveBudget, ReceiveBudgetError
from merrow.settings import ConnectionLimits
from tests.net.http2_client import Http2Client, failed, message
from tests.net.serving import MemoryConnection, read_until, serving
from tests.wire.http2.recording import data_frame

TEXT = "the requests that are being received together exceed the limit of {} bytes; try again"
LIMITS = ConnectionLimits(max_receiving_byte_size=1_000_000)


def test_shares_grow_and_are_given_back():
    budget = ReceiveBudget(100)
    first, second = BudgetShare(budget), BudgetShare(budget)
    first.grow_to(60)
    first.grow_to(50)
    second.grow_to(40)
    with pytest.raises(ReceiveBudgetError, match=TEXT.format(100)):
        second.grow_to(41)
    assert budget.taken_byte_size == 100
    first.release()
    second.grow_to(100)
    del second
    gc.collect()
    assert budget.taken_byte_size == 0


def test_a_body_counts_from_its_first_piece_until_it_is_taken():
    budget = ReceiveBudget(10_000)
    whole = BodyBuffer(9_000, budget)
    whole.add(bytes(9_000))
    assert budget.taken_byte_size == 0
    body = BodyBuffer(9_000, budget)
    body.add(bytes(10))
    assert budget.taken_byte_size == 10
    body.add(bytes(1_000))
    assert budget.taken_byte_size == 9_000
    body.add(bytes(7_990))
    body.take()
    assert budget.taken_byte_size == 0


def http_1(client, body_byte_size=900_000):
    client.receive(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % body_byte_size)
    client.receive(bytes(100_000))


def test_http_1_is_answered_503_and_can_come_again():
    first = MemoryConnection(LIMITS)
    http_1(first)
    second = MemoryConnection(LIMITS)
    second.service.receive_budget = first.service.receive_budget
    http_1(second)
    text = TEXT.format(1_000_000).encode()
    assert second.written() == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b'Connection: close\r\n\r\n{"error":"%b"}' % (len(text) + 12, text)
    )
    first.receive(bytes(800_000))
    assert first.written().startswith(b"HTTP/1.1 200 OK")
    third = MemoryConnection(LIMITS)
    third.service.receive_budget = first.service.receive_budget
    http_1(third)
    third.receive(bytes(800_000))
    assert third.written().startswith(b"HTTP/1.1 200 OK")
    assert first.service.receive_budget.taken_byte_size == 0


def test_chunks_count_as_they_come():
    client = MemoryConnection(LIMITS)
    client.receive(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(10):
        client.receive(b"186A0\r\n" + bytes(100_000) + b"\r\n")
    assert client.service.receive_budget.taken_byte_size == 1_000_000
    client.receive(b"1\r\na\r\n0\r\n\r\n")
    assert client.written().startswith(b"HTTP/1.1 503 ")
    gc.collect()
    assert client.service.receive_budget.taken_byte_size == 0


@pytest.mark.parametrize("fields", [(), (("content-length", "900000"),)])
def test_http_2_and_a_client_that_leaves(fields):
    client = Http2Client(LIMITS)
    client.receive(client.request_head(1, "/", *fields) + data_frame(1, bytes(200_000)))
    client.receive(client.request_head(3, "/", *fields) + data_frame(3, bytes(200_000)))
    budget = client.service.receive_budget
    if fields:
        [answer] = client.answers().values()
        assert dict(answer[0])[":status"] == "503"
    else:
        assert budget.taken_byte_size == 400_000
    client.lose()
    del client
    gc.collect()
    assert budget.taken_byte_size == 0


def test_grpc_is_answered_resource_exhausted():
    client = Http2Client(LIMITS)
    body = message(bytes(900_000))
    client.receive(client.call_head(1, "Unary") + data_frame(1, body[:200_000]))
    client.receive(client.call_head(3, "Unary") + data_frame(3, body[:200_000]))
    answers = client.answers()
    assert list(answers) == [3]
    assert answers[3][:2] == failed(8, TEXT.format(1_000_000))
    client.receive(data_frame(1, body[200_000:400_000]))
    for start in range(400_000, len(body), 200_000):
        client.receive(data_frame(1, body[start : start + 200_000], end=start + 200_000 >= len(body)))
    assert client.application.request_count == 1


def test_many_real_clients_that_stop_half_way_hold_no_more_than_the_limit():
    limits = ConnectionLimits(max_receiving_byte_size=20_000_000)
    with serving(limits) as server:
        clients, refused = [], 0
        try:
            for _ in range(10):
                context = server.connect()
                client = context.__enter__()
                clients.append(context)
                client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n" + bytes(200_000))
                server.pass_until(lambda: server.listener._service.receive_budget.taken_byte_size % 5_000_000 == 0)
            taken = server.call(lambda: server.listener._service.receive_budget.taken_byte_size)
            assert taken == 20_000_000
            refused = read_until(client, b"\r\n")
            assert refused == b"HTTP/1.1 503 Service Unavailable\r\n"
        finally:
            for context in clients:
                context.__exit__(None, None, None)
        server.pass_until(lambda: server.listener._service.receive_budget.taken_byte_size == 0)
