"""HTTP/1.1 and HTTP/1.0 on one connection.

Requests are handed to the application one at a time; those that arrive meanwhile (pipelining) wait, parsed, up to a
limit beyond which the socket is not read. So answers go out in order by themselves. The input is in one of these
states:

    HEAD      between requests, or inside a head (`_rest` holds what there is of it)
    BODY      inside a body of known length (`_body`)
    CHUNKS    inside a chunked body (`_chunks`)
    IGNORED   nothing more is served: the last request has arrived, or the client broke the protocol

A fault in the input is answered in its turn, after the requests before it. Then the connection is closed for writing,
and read for a moment longer: closing it with bytes unread would make the system throw the answer away.

`data_received` and `send_answer` are straight code for the common case: a known head, its whole body, nothing after.

Source: RFC 9112.
"""

import asyncio
import enum
from collections import deque
from collections.abc import Sequence

from merrow.core.tensor import Buffer
from merrow.net.body import BodyBuffer, no_memory_text
from merrow.net.chunked import ChunkedBody
from merrow.net.exchange import Exchange, Header
from merrow.net.http1_head import Http1Head
from merrow.net.receiver import DirectConnection, DirectReceiver
from merrow.net.service import Service
from merrow.net.status import JSON_HEADERS, RequestFault, error_body, has_no_body, reason_phrase

# Up to this size the parts of an answer are joined: one plain write costs less than a gathered one.
_JOIN_BYTE_SIZE = 32 * 1024
# Answers to pipelined requests are written together up to this size.
_MAX_OUTPUT_BYTE_SIZE = 256 * 1024
# Where large answers are paced, so much goes to the transport at a time.
_PACE_BYTE_SIZE = 256 * 1024
# A body of which so much is still to come is received into its place.
_DIRECT_BYTE_SIZE = 64 * 1024
# A body at least so long is viewed where it lies, instead of copied out of the bytes received.
_VIEW_BYTE_SIZE = 8 * 1024
# Bytes of bodies that may wait in pipelined requests.
_MAX_WAITING_BYTE_SIZE = 1024 * 1024
_MAX_CACHED_RESPONSE_HEADS = 256


class _Input(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    CHUNKS = enum.auto()
    IGNORED = enum.auto()


# Names of this module, because the receive path compares with them.
_HEAD = _Input.HEAD
_IGNORED = _Input.IGNORED


class Http1Exchange(Exchange):
    """One request and its answer. `_connection` is None once answered, or when the client has left."""

    __slots__ = ("_connection", "_has_body", "_head")

    def __init__(self, connection: "Http1Connection", head: Http1Head, body: Buffer) -> None:
        self.method = head.method
        self.target = head.target
        self.headers = head.headers
        self.body = body
        self.on_disconnect = None
        self._head = head
        self._connection: Http1Connection | None = connection

    def header(self, name: bytes) -> bytes | None:
        return self._head.fields.get(name)

    def respond(self, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        connection = self._connection
        if connection is not None:
            self._connection = None
            connection.send_answer(self._head, status, headers, parts)

    def start_stream(self, status: int, headers: Sequence[Header]) -> None:
        if self._connection is not None:
            self._has_body = self.method != b"HEAD" and not has_no_body(status)
            self._connection.start_answer(self._head, status, headers)

    def write(self, data: Buffer) -> None:
        connection = self._connection
        if connection is None or not len(data) or not self._has_body:
            return
        if self._head.is_http_1_0:
            connection.write((data,), len(data))
        else:
            connection.write((b"%x\r\n" % len(data), data, b"\r\n"), len(data))

    @property
    def is_writable(self) -> bool:
        return self._connection is None or not self._connection.is_write_paused

    async def drain(self) -> None:
        if self._connection is not None:
            await self._connection.wait_until_writable()

    def finish(self) -> None:
        connection = self._connection
        if connection is not None:
            self._connection = None
            if self._has_body and not self._head.is_http_1_0:
                connection.write((b"0\r\n\r\n",), 0)
            connection.finish_answer(is_last=not self._head.keeps_alive or self._head.is_http_1_0)

    def abandon(self) -> None:
        """The client has left."""
        if self._connection is not None:
            self._connection = None
            if self.on_disconnect is not None:
                self.on_disconnect()


class Http1Connection(DirectConnection):
    """One connection; see the module."""

    __slots__ = (
        "_active_ns",
        "_body",
        "_chunks",
        "_end_lingers",
        "_exchange",
        "_head",
        "_heads",
        "_input",
        "_is_advancing",
        "_is_last_sent",
        "_is_read_paused",
        "_on_exchange",
        "_output",
        "_output_byte_size",
        "_owes_continue",
        "_paced",
        "_progress_ns",
        "_rest",
        "_scanned_byte_size",
        "_waiting",
        "_waiting_byte_size",
        "_writable_waiters",
    )

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._heads = service.head_cache.heads
        self._on_exchange = service.http_application.on_exchange
        self._input = _HEAD
        # Bytes received and not used, at most an incomplete head unless reading is paused; and how far they have been
        # searched for the end of a head.
        self._rest = b""
        self._scanned_byte_size = 0
        # The request whose body is coming in, whether its client waits for our word to send it, and the body.
        self._head: Http1Head | None = None
        self._owes_continue = False
        self._body: BodyBuffer | None = None
        self._chunks: ChunkedBody | None = None
        # The request that the application has, and those, or the fault, behind it.
        self._exchange: Http1Exchange | None = None
        self._waiting: deque[Http1Exchange | RequestFault] = deque()
        self._waiting_byte_size = 0
        # While input is handled, an answer does not itself start the next request, and waits in `_output`.
        self._is_advancing = False
        self._output: list[Buffer] | None = None
        self._output_byte_size = 0
        # Where transports copy what they are given, or encrypt it at once: what of a large answer they have not been
        # given yet (nothing unless writing is paused), and how the connection ends when they have, if it does.
        self._paced: deque[Buffer] | None = None
        self._end_lingers: bool | None = None
        self._is_last_sent = False
        self._is_read_paused = False
        self._writable_waiters: list[asyncio.Future[None]] = []
        # When bytes last arrived; when the request that is coming in last made progress.
        self._active_ns = service.now_ns
        self._progress_ns = service.now_ns

    # Receiving

    def data_received(self, data: bytes) -> None:
        self._active_ns = self.service.now_ns
        if self._rest:
            data = self._rest + data
            self._rest = b""
        elif self._input is _HEAD and self._exchange is None and not self._waiting:
            head_end = data.find(b"\r\n\r\n") + 4
            head = self._heads.get(data[:head_end])
            if head is not None and head.is_plain and len(data) == head_end + head.content_length:
                body = data[head_end:] if head.content_length < _VIEW_BYTE_SIZE else memoryview(data)[head_end:]
                self._exchange = exchange = Http1Exchange(self, head, body)
                self._is_advancing = True
                self._on_exchange(exchange)
                self._is_advancing = False
                if self._is_last_sent:
                    self.end(lingers=False)
                return
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        """Take what `data` holds, and serve what can be served."""
        self._is_advancing = True
        self._output = []
        position = 0
        try:
            while True:
                self._advance()
                if position == len(data) or self._input is _IGNORED or self._must_pause():
                    break
                if self._input is _HEAD:
                    position = self._receive_head(data, position)
                elif self._body is not None:
                    position = self._receive_body(self._body, data, position)
                else:
                    position = self._receive_chunks(data, position)
        except RequestFault as fault:
            self._fail(fault)
            self._advance()
        except MemoryError as error:
            self._fail(RequestFault(503, no_memory_text(error)))
            self._advance()
        if self._input is not _IGNORED and position < len(data):
            # Not an incomplete head, which `_receive_head` keeps: reading pauses.
            self._rest = data[position:]
            self._scanned_byte_size = 0
        self._is_advancing = False
        self._flush_output()
        self._output = None
        if self._is_last_sent:
            self.end(lingers=False)
        self._update_reading()

    def _receive_head(self, data: bytes, position: int) -> int:
        """Take a head, and its body if that is there; returns the position after it."""
        limit = self.service.limits.max_header_byte_size
        if position == 0 and self._scanned_byte_size:
            head_end = data.find(b"\r\n\r\n", self._scanned_byte_size)
        else:
            # Empty lines before a request are tolerated.
            while data.startswith(b"\r\n", position):
                position += 2
            head_end = data.find(b"\r\n\r\n", position)
        if (len(data) if head_end < 0 else head_end) - position > limit:
            raise RequestFault(431, f"request head exceeds the limit of {limit} bytes")
        if head_end < 0:
            if not self._scanned_byte_size:
                self._progress_ns = self.service.now_ns
            self._rest = data[position:]
            self._scanned_byte_size = max(len(self._rest) - 3, 0)
            return len(data)
        head_end += 4
        self._scanned_byte_size = 0
        block = data[position:head_end]
        head = self._heads.get(block) or self.service.head_cache.parse(block)
        body_end = head_end + head.content_length
        if head.content_length >= 0 and body_end <= len(data):
            is_most = head.content_length * 2 > len(data) and head.content_length >= _VIEW_BYTE_SIZE
            self._take_request(head, memoryview(data)[head_end:body_end] if is_most else data[head_end:body_end])
            return body_end
        self._head = head
        self._owes_continue = head.expects_continue and head_end == len(data)
        if head.content_length < 0:
            self._input = _Input.CHUNKS
            self._chunks = ChunkedBody(self.service.limits.max_body_byte_size, limit, self.service.receive_budget)
        else:
            self._input = _Input.BODY
            self._body = BodyBuffer(head.content_length, self.service.receive_budget)
        self._progress_ns = self.service.now_ns
        return head_end

    def _receive_body(self, body: BodyBuffer, data: bytes, position: int) -> int:
        self._progress_ns = self.service.now_ns
        end = min(position + body.remaining_byte_size, len(data))
        body.add(data[position:end] if end - position < _VIEW_BYTE_SIZE else memoryview(data)[position:end])
        if body.is_complete:
            self._end_body(body.take())
        elif (
            body.remaining_byte_size >= _DIRECT_BYTE_SIZE
            and body.remaining_view() is not None
            and self.service.receives_directly
        ):
            self.transport.set_protocol(DirectReceiver(self))
        return end

    def direct_view(self) -> memoryview:
        assert self._body is not None
        view = self._body.remaining_view()
        assert view is not None
        return view

    def advance_direct(self, byte_size: int) -> None:
        assert self._body is not None
        self._active_ns = self._progress_ns = self.service.now_ns
        self._body.advance(byte_size)
        if self._body.is_complete:
            self.transport.set_protocol(self)
            self._end_body(self._body.take())
            self._receive(b"")

    def _receive_chunks(self, data: bytes, position: int) -> int:
        assert self._chunks is not None
        self._progress_ns = self.service.now_ns
        position = self._chunks.feed(data, position)
        if self._chunks.is_complete:
            self._end_body(self._chunks.body)
        return position

    def _end_body(self, body: Buffer) -> None:
        assert self._head is not None
        head, self._head = self._head, None
        self._body = self._chunks = None
        self._owes_continue = False
        self._input = _HEAD
        self._take_request(head, body)

    def _take_request(self, head: Http1Head, body: Buffer) -> None:
        self._waiting.append(Http1Exchange(self, head, body))
        self._waiting_byte_size += len(body)
        if not head.keeps_alive:
            self._input = _IGNORED

    def _fail(self, fault: RequestFault) -> None:
        self._input = _IGNORED
        self._body = self._chunks = None
        self._owes_continue = False
        self._rest = b""
        self._waiting.append(fault)

    def _advance(self) -> None:
        """Hand requests to the application until it keeps one."""
        waiting = self._waiting
        while waiting and self._exchange is None and not self.is_write_paused:
            first = waiting.popleft()
            if isinstance(first, RequestFault):
                body = error_body(first.text)
                start = self._response_start(first.status, JSON_HEADERS, len(body), is_last=True)
                self.write((start, body), len(body))
                self.end(lingers=True)
                return
            self._waiting_byte_size -= len(first.body)
            self._exchange = first
            self._on_exchange(first)
        if self._exchange is None and self._owes_continue:
            self._owes_continue = False
            self.write((b"HTTP/1.1 100 Continue\r\n\r\n",), 0)

    def _must_pause(self) -> bool:
        """Whether enough waits, for the application or for the client to read."""
        return (
            len(self._waiting) >= self.service.limits.max_pipelined_requests
            or self._waiting_byte_size > _MAX_WAITING_BYTE_SIZE
            or self.is_write_paused
        )

    def _update_reading(self) -> None:
        must_pause = self._must_pause() and not self.is_ended
        if must_pause != self._is_read_paused:
            self._is_read_paused = must_pause
            if must_pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # Answering

    def send_answer(self, head: Http1Head, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        """The whole answer to the current request."""
        byte_size = 0
        for part in parts:
            byte_size += len(part)
        entry = self.service.response_heads.get((status, id(headers)))
        if head.is_plain and entry is not None and entry[0] is headers and not self.service.is_draining:
            start = b"%b%d\r\n\r\n" % (entry[1], byte_size)
            if self._output is None and byte_size <= _JOIN_BYTE_SIZE and self._paced is None:
                self.transport.write(b"".join((start, *parts)))
            else:
                self.write((start, *parts), byte_size)
            self._exchange = None
            if not self._is_advancing:
                self._continue()
            return
        is_last = self._is_last(head)
        start = self._response_start(status, headers, byte_size, is_last, head.is_http_1_0)
        if head.method == b"HEAD" or has_no_body(status):
            self.write((start,), 0)
        else:
            self.write((start, *parts), byte_size)
        self.finish_answer(is_last)

    def start_answer(self, head: Http1Head, status: int, headers: Sequence[Header]) -> None:
        """The start of a streamed answer; over HTTP/1.0 it ends with the connection."""
        is_last = self._is_last(head) or head.is_http_1_0
        self.write((self._response_start(status, headers, None, is_last, head.is_http_1_0),), 0)

    def finish_answer(self, is_last: bool) -> None:
        """The current request has been answered."""
        self._exchange = None
        if is_last:
            self._is_last_sent = True
        if not self._is_advancing:
            self._continue()

    def _is_last(self, head: Http1Head) -> bool:
        is_leaving = self.service.is_draining and self._input is _HEAD and not self._waiting and not self._rest
        return is_leaving or not head.keeps_alive

    def _response_start(
        self, status: int, headers: Sequence[Header], byte_size: int | None, is_last: bool, is_http_1_0: bool = False
    ) -> bytes:
        """Status line and headers; without a size, those of a streamed answer."""
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason_phrase(status))]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if not has_no_body(status):
            if not is_last and not is_http_1_0 and byte_size is not None and isinstance(headers, tuple):
                cache = self.service.response_heads
                if len(cache) >= _MAX_CACHED_RESPONSE_HEADS:
                    cache.clear()
                cache[status, id(headers)] = (headers, b"".join(lines) + b"Content-Length: ")
            if byte_size is not None:
                lines.append(b"Content-Length: %d\r\n" % byte_size)
            elif not is_http_1_0:
                lines.append(b"Transfer-Encoding: chunked\r\n")
        if is_last:
            lines.append(b"Connection: close\r\n")
        elif is_http_1_0:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def write(self, parts: Sequence[Buffer], byte_size: int) -> None:
        """Write now, or with what else is written while input is handled.

        Args:
            byte_size: roughly that of the parts.
        """
        if self._output is not None:
            self._output += parts
            self._output_byte_size += byte_size
            if self._output_byte_size > _MAX_OUTPUT_BYTE_SIZE:
                self._flush_output()
        else:
            self._transmit(parts, byte_size)

    def _flush_output(self) -> None:
        output = self._output
        if output:
            self._output = []
            byte_size, self._output_byte_size = self._output_byte_size, 0
            self._transmit(output, byte_size)

    def _transmit(self, parts: Sequence[Buffer], byte_size: int) -> None:
        """Give parts to the transport."""
        if self._paced is not None:
            self._paced.extend(parts)
        elif byte_size <= _JOIN_BYTE_SIZE:
            self.transport.write(b"".join(parts))
        elif self.service.paces_output:
            self._paced = deque(parts)
            self._pace()
        else:
            self.transport.writelines(parts)

    def _pace(self) -> None:
        """Go on with what is paced, until the transport has enough."""
        paced = self._paced
        while paced and not self.is_write_paused:
            pieces: list[Buffer] = []
            room = _PACE_BYTE_SIZE
            while paced and room:
                piece = paced.popleft()
                if len(piece) > room:
                    view = memoryview(piece)
                    paced.appendleft(view[room:])
                    piece = view[:room]
                pieces.append(piece)
                room -= len(piece)
            self.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if not paced:
            self._paced = None
            if self._end_lingers is not None:
                super().end(self._end_lingers)

    def _continue(self) -> None:
        """An answer has been given outside of `_receive`: go on with what waits behind it."""
        if self._is_last_sent:
            self.end(lingers=False)
        elif self._waiting or self._rest or self._owes_continue or self._is_read_paused:
            rest, self._rest = self._rest, b""
            self._receive(rest)
        elif self.service.is_draining:
            self.begin_drain()

    def end(self, lingers: bool) -> None:
        if not self.is_ended:
            self._input = _IGNORED
            self._rest = b""
            self._flush_output()
            if self._paced is not None:
                self._end_lingers = lingers
            else:
                super().end(lingers)

    def flush(self) -> None:
        """HTTP/1.1 writes at once."""

    # Events

    async def wait_until_writable(self) -> None:
        if self.is_write_paused:
            waiter = self.service.loop.create_future()
            self._writable_waiters.append(waiter)
            await waiter

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._paced is not None:
            self._pace()
        if self.is_write_paused:
            return
        self._wake_waiters()
        if not self.is_ended and not self._is_advancing:
            self._continue()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._input = _IGNORED
        self._body = self._chunks = self._paced = None
        self._waiting.clear()
        self._wake_waiters()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    def _wake_waiters(self) -> None:
        waiters, self._writable_waiters = self._writable_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def sweep(self, now_ns: int) -> None:
        super().sweep(now_ns)
        limits = self.service.limits
        if self._input is _IGNORED:
            return
        if self._is_read_paused:
            # It is we who do not let the client go on.
            self._progress_ns = now_ns
        elif self._input is not _HEAD or self._rest:
            if now_ns - self._progress_ns > limits.receive_timeout_ns:
                # What a direct receiver still receives is not wanted any more.
                self.transport.set_protocol(self)
                self._fail(RequestFault(408, "request timed out: its bytes stopped coming"))
                self._advance()
        elif self._exchange is None and now_ns - self._active_ns > limits.idle_timeout_ns:
            self.end(lingers=False)

    def begin_drain(self) -> None:
        if self._exchange is None and not self._waiting and self._input is _HEAD and not self._rest:
            self.end(lingers=False)
