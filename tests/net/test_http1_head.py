import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merrow.net.http1_head import HeadCache, parse_head
from merrow.net.status import RequestFault


def parse(*lines, max_header_count=100):
    return parse_head(b"\r\n".join(lines) + b"\r\n\r\n", max_header_count)


def fault_of(*lines):
    with pytest.raises(RequestFault) as caught:
        parse(*lines)
    return caught.value.status, caught.value.text


def test_a_head_says_what_is_requested():
    head = parse(b"POST /v2/models/a%20b/infer?x=1 HTTP/1.1", b"Host: h", b"X-Name:  Value ", b"Content-Length: 12")

    assert (head.method, head.target) == (b"POST", b"/v2/models/a%20b/infer?x=1")
    assert head.headers == [(b"Host", b"h"), (b"X-Name", b"Value"), (b"Content-Length", b"12")]
    assert head.fields == {b"host": b"h", b"x-name": b"Value", b"content-length": b"12"}
    assert (head.content_length, head.keeps_alive, head.is_http_1_0, head.is_plain) == (12, True, False, True)


def test_a_name_given_twice_has_its_first_value():
    assert parse(b"GET / HTTP/1.1", b"A: 1", b"a: 2").fields == {b"a": b"1"}


@pytest.mark.parametrize(
    ("version", "connection", "keeps_alive"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: close"], False),
        (b"1.1", [b"Connection: Foo, CLOSE"], False),
        (b"1.1", [b"Connection: foo", b"Connection: close"], False),
        (b"1.1", [b"Connection: keep-alive"], True),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: Keep-Alive"], True),
    ],
)
def test_keeping_the_connection(version, connection, keeps_alive):
    assert parse(b"GET / HTTP/" + version, *connection).keeps_alive is keeps_alive


def test_what_makes_an_answer_special():
    assert not parse(b"HEAD / HTTP/1.1").is_plain
    assert not parse(b"GET / HTTP/1.0", b"Connection: keep-alive").is_plain
    assert not parse(b"GET / HTTP/1.1", b"Connection: close").is_plain
    assert not parse(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked").is_plain


def test_a_chunked_body_has_no_length():
    assert parse(b"POST / HTTP/1.1", b"Transfer-Encoding: Chunked").content_length == -1


def test_only_a_client_of_1_1_can_expect_100_continue():
    assert parse(b"POST / HTTP/1.1", b"Expect: 100-Continue").expects_continue
    assert not parse(b"POST / HTTP/1.0", b"Expect: 100-continue").expects_continue
    assert not parse(b"POST / HTTP/1.1", b"Expect: tea").expects_continue


@pytest.mark.parametrize("method", [b"BREW", b"get", b"X-Y", b"OPTIONS", b"M-SEARCH"])
def test_methods_are_the_applications_to_refuse(method):
    assert parse(method + b" / HTTP/1.1").method == method


def test_connect_and_upgrades_are_ordinary_requests():
    assert parse(b"CONNECT host:80 HTTP/1.1").target == b"host:80"
    head = parse(b"POST / HTTP/1.1", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"Content-Length: 5")
    assert (head.method, head.content_length) == (b"POST", 5)


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        (b"http://host/v2?a=b", b"/v2?a=b"),
        (b"HTTP://host:8000/", b"/"),
        (b"http://host", b"/"),
        (b"/a://b", b"/a://b"),
        (b"*", b"*"),
    ],
)
def test_a_target_is_given_in_origin_form(target, origin):
    assert parse(b"OPTIONS " + target + b" HTTP/1.1").target == origin


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"GARBAGE"], 400),
        ([b"GET /"], 505),
        ([b"GET / HTTP/1.1", b"no colon"], 400),
        ([b"GET / HTTP/1.1", b"bad name : x"], 400),
        ([b"GET / HTTP/1.1\nA: b"], 400),
        ([b"GET / HTTP/3.0"], 400),
        ([b"GET / FTP/1.1"], 400),
        ([b" GET / HTTP/1.1"], 400),
        ([b"G(T / HTTP/1.1"], 400),
        ([b"X" * 40 + b" / HTTP/1.1"], 400),
        ([b"GET  HTTP/1.1"], 400),
        ([b"GET / HTTP/2.0"], 505),
        ([b"POST / HTTP/1.1", b"Content-Length: x"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: -1"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: +1"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: 99999999999999999999999"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: 5", b"Content-Length: 5"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: 5", b"Content-Length: 6"], 400),
        ([b"POST / HTTP/1.1", b"Content-Length: 5", b"Transfer-Encoding: chunked"], 400),
        ([b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
        ([b"POST / HTTP/1.1", b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"], 501),
    ],
)
def test_what_is_not_served(lines, status):
    assert fault_of(*lines)[0] == status


def test_faults_say_what_is_wrong():
    assert fault_of(b"GET / HTTP/1.1", b"no colon") == (400, "unable to parse the request: Invalid header token")
    assert fault_of(b"GET / HTTP/2.0") == (505, "HTTP version 2.0 is not supported")


def test_too_many_headers_are_refused():
    with pytest.raises(RequestFault) as caught:
        parse(b"GET / HTTP/1.1", *[b"a%d: b" % number for number in range(6)], max_header_count=5)

    assert (caught.value.status, caught.value.text) == (431, "request has more than 5 headers")


def test_heads_are_remembered_by_their_bytes():
    cache = HeadCache(max_header_count=100, max_body_byte_size=1000)
    block = b"GET / HTTP/1.1\r\nA: b\r\n\r\n"

    head = cache.parse(block)

    assert cache.heads == {block: head}


def test_heads_of_bodies_over_the_limit_are_not_remembered():
    cache = HeadCache(max_header_count=100, max_body_byte_size=1000)

    with pytest.raises(RequestFault) as caught:
        cache.parse(b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n")

    assert (caught.value.status, caught.value.text) == (413, "request body exceeds the limit of 1000 bytes")
    assert cache.heads == {}


def test_the_memory_of_heads_is_bounded():
    cache = HeadCache(max_header_count=100, max_body_byte_size=1000)
    for number in range(2000):
        cache.parse(b"GET /%d HTTP/1.1\r\n\r\n" % number)
    cache.parse(b"GET / HTTP/1.1\r\nA: " + b"b" * 5000 + b"\r\n\r\n")

    assert len(cache.heads) <= 512
    assert max(map(len, cache.heads)) <= 2048


@pytest.mark.slow
@settings(max_examples=200)
@given(st.binary(max_size=100))
def test_any_bytes_are_a_head_or_a_fault(data):
    for block in (data + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n", b"POST " + data + b"\r\n\r\n"):
        try:
            head = parse_head(block, 10)
        except RequestFault:
            continue
        assert head.content_length >= -1
