"""The floor: an event loop that answers any bytes with the same HTTP answer, and parses nothing.

    python -m bench.floor PORT

No server in Python can use less. It runs beside the others so that a reader can tell a slow machine from a slow server.
"""

import asyncio
import sys

import uvloop

from bench.http_load import http_answer
from bench.workload import small_tensor
from tests.oracle.server_process import ADDRESS

ANSWER = http_answer(small_tensor("").data)


class Floor(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, ADDRESS, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
