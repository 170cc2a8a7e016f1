"""A tracer whose traces a test can look at."""

import asyncio

from merrow.observe.trace import Tracer
from merrow.observe.trace_file import TraceFile
from merrow.settings import TraceSettings
from merrow.testing.manual_clock import ManualClock


class KeepingOutput(TraceFile):
    """Keeps what is written."""

    def __init__(self):
        super().__init__("/nowhere")
        self.traces = []

    def write(self, setting, traces, is_last):
        self.traces += traces


def run_traced(body, **settings):
    """Run `body(tracer)` with every request traced; returns the names of what each trace recorded."""

    async def main():
        output = KeepingOutput()
        options = {"timestamps": True, "rate": 1, "file": "/nowhere", **settings}
        tracer = Tracer(TraceSettings(**options), output, ManualClock())
        result = body(tracer)
        if asyncio.iscoroutine(result):
            await result
        await tracer.close()
        return [[name for name, _ in trace.records] for trace in output.traces]

    return asyncio.run(main())
