"""A process with a place and two instances, one of them busy. Prints the pids of everything below it, and waits.

Started by tests, which kill it.
"""

import asyncio
import os
from pathlib import Path

import numpy as np

from tests.places.process.place_harness import Reports, make_request, running_place, start, text_of


async def main() -> None:
    reports = Reports()
    async with running_place() as place:
        first = await start(place, reports, name="m_0_0")
        second = await start(place, reports, name="m_0_1")
        started = int(text_of(await reports.ask(first, make_request(do="start a process"))))
        busy = reports.submit(second, make_request({"SECONDS": np.array([60.0])}, "sleep"))
        fork_server = int(Path(f"/proc/{first.process_id}/stat").read_text().rsplit(")", 1)[1].split()[1])  # noqa: ASYNC240
        print(os.getpid(), fork_server, first.process_id, second.process_id, started, flush=True)
        await busy


if __name__ == "__main__":
    asyncio.run(main())
