"""Backends for tests of the process place; they run in real child processes, which import this module by name."""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from merrow.backends.base import (
    Backend,
    Deferral,
    DropMetric,
    Execution,
    Instance,
    InstanceDescription,
    InstanceHost,
    IsModelReady,
    LoadModel,
    ModelContext,
    Outcome,
    Place,
    ReadMetric,
)
from merrow.core.errors import CancelledError, InvalidArgumentError, NotFoundError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelInput
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.process.channel import frame
from merrow.places.process.service_client import ServiceClient

# Which of a process's sockets.
DATA = 0
CONTROL = 1
SERVICES = 2


def backend_of(name: str) -> Backend:
    if name != "fake":
        raise InvalidArgumentError(f"no backend {name}")
    return FakeBackend()


class FakeBackend(Backend):
    """What an instance does is said by the parameter `do` of each request; what loading does, by the config's name."""

    name = "fake"
    default_place = Place.PROCESS

    def auto_complete(self, context: ModelContext) -> ModelConfig:
        if context.name == "refuses":
            raise UnavailableError("not today")
        if context.name == "dies":
            os._exit(3)
        if context.name == "completes wrongly":
            return "a text"  # type: ignore[return-value]
        return ModelConfig(name=context.name, max_batch_size=8, input=(ModelInput("IN", "TYPE_FP32", dims=(-1,)),))

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        if context.name == "refuses":
            raise UnavailableError("not today")
        if context.name == "raises":
            raise ZeroDivisionError("by nothing")
        if context.name == "dies":
            os._exit(3)
        if context.name == "says nonsense while it loads":
            os.write(_sockets(host)[CONTROL], frame(99))
            time.sleep(60)
        if context.name == "asks while it loads":
            assert host.ask(IsModelReady("other")) is True
        if context.name == "dies_later":
            # Loads once, and never again.
            marker = Path(context.version_directory, "loaded")
            if marker.exists():
                os._exit(3)
            marker.touch()
        logging.getLogger("merrow.python").info("loading %s", instance.name)
        return FakeInstance(context, host)


class CallSink:
    """Of a call: keeps the responses."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.news = threading.Semaphore(0)

    def on_response(self, response: Response) -> None:
        self.responses.append(response)
        self.news.release()


class FakeInstance(Instance):
    def __init__(self, context: ModelContext, host: InstanceHost) -> None:
        self._context = context
        self._host = host
        self._kept: list[np.ndarray] = []
        self._deferred: list[Request] = []
        self._calls: list[CallSink] = []

    def execute(self, requests: Sequence[Request]) -> Execution:
        start_ns = time.monotonic_ns()
        outcomes = [self._answer(request) for request in requests]
        end_ns = time.monotonic_ns()
        return Execution(outcomes, start_ns, start_ns + 1, end_ns - 1, end_ns)

    def close(self) -> None:
        if self._context.name == "finalizes":
            Path(self._context.version_directory, "finalized").touch()
        if self._context.name == "never_ends":
            time.sleep(60)
        if self._context.name == "cannot be closed":
            raise ValueError("still here")

    def _answer(self, request: Request) -> Outcome:
        do = (request.parameters or {}).get("do", "echo")
        arrays = {name: tensor.as_numpy() for name, tensor in request.inputs.items() if tensor.datatype != "BYTES"}
        if do == "echo":
            return Response("", 0, outputs=list(request.inputs.values()), parameters=request.parameters)
        if do == "describe":
            return _text_response(
                repr(
                    (
                        request.id,
                        request.correlation_id,
                        request.flags,
                        request.priority,
                        request.timeout_us,
                        request.parameters,
                        request.requested_outputs,
                        {name: (tensor.datatype, list(tensor.shape)) for name, tensor in request.inputs.items()},
                    )
                )
            )
        if do == "environment":
            return _text_response(
                repr(
                    {
                        "pid": os.getpid(),
                        "is_main_thread": threading.current_thread() is threading.main_thread(),
                        "stdin": sys.stdin.read(),
                        "descriptors": sorted(os.listdir("/proc/self/fd")),
                        "random": [int(np.random.randint(1 << 30)) for _ in range(2)],
                    }
                )
            )
        if do == "double":
            return Response("", 0, outputs=[Tensor.from_numpy(name, array * 2) for name, array in arrays.items()])
        if do == "tail":
            return Response("", 0, outputs=[Tensor.from_numpy(name, array[1:]) for name, array in arrays.items()])
        if do == "keep":
            self._kept += arrays.values()
            return Response("", 0, outputs=[Tensor.from_numpy(name, array) for name, array in arrays.items()])
        if do == "sum_kept":
            return _text_response(repr([float(array.sum()) for array in self._kept]))
        if do == "spoil_kept":
            for array in self._kept:
                array[:] = -1
            return _text_response("")
        if do == "drop_kept":
            self._kept.clear()
            return _text_response("")
        if do == "make":
            return Response("", 0, outputs=[Tensor.from_numpy("OUT", np.ones(int(arrays["SIZE"][0]), np.uint8))])
        if do == "stream":
            self._stream(request)
            return Deferral.DEFERRED
        if do == "stream later":
            threading.Thread(target=self._stream, args=(request,), daemon=True).start()
            return Deferral.DEFERRED
        if do == "stream and reschedule":
            self._host.send(request, Response("", 0, outputs=list(request.inputs.values()), is_final=False))
            return Deferral.RESCHEDULED
        if do == "stream and raise":
            self._host.send(request, Response("", 0, outputs=list(request.inputs.values()), is_final=False))
            raise ValueError("boom")
        if do == "keep until cancelled":
            self._kept += arrays.values()
            threading.Thread(target=self._keep_until_cancelled, args=(request,), daemon=True).start()
            return Deferral.DEFERRED
        if do == "stream when cancelled":
            threading.Thread(target=self._stream_when_cancelled, args=(request,), daemon=True).start()
            return Deferral.DEFERRED
        if do == "call":
            return self._call(request)
        if do == "call and return":
            self._calls.append(CallSink())
            self._host.infer(Request("other", -1, self._calls[-1], {}), True, [request], None)
            return _text_response("")
        if do == "count responses of calls":
            for sink in self._calls:
                while not sink.responses or not sink.responses[-1].is_final:
                    sink.news.acquire()
            return _text_response(repr([len(sink.responses) for sink in self._calls]))
        if do == "ask":
            try:
                files = {"file:1/model.py": b"x" * 100_000, "small": b"y"}
                answers = [
                    self._host.ask(question)
                    for question in (IsModelReady("other", "2"), LoadModel("other", "{}", files), ReadMetric(7))
                ]
            except NotFoundError as error:
                return error
            self._host.drop(DropMetric(7))
            return _text_response(repr(answers))
        if do == "defer":
            self._deferred.append(request)
            return Deferral.DEFERRED
        if do == "error":
            return Response("", 0, error=NotFoundError("no such thing"))
        if do == "fail":
            return UnavailableError("come again")
        if do == "raise":
            raise ValueError("boom")
        if do == "long name":
            return Response("", 0, outputs=[Tensor("n" * 100_000, "FP32", (0,), b"")])
        if do == "sleep":
            time.sleep(float(arrays["SECONDS"][0]))
            return _text_response("")
        if do == "touch":
            pathlib.Path(str(request.parameters["path"])).touch()
            return _text_response("touched")
        if do == "wait until cancelled":
            while not request.is_cancelled:
                time.sleep(0.001)
            return _text_response("cancelled")
        if do == "exit":
            os._exit(7)
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "log":
            logging.getLogger("merrow.python").warning("said %s", "so")
            return _text_response("")
        if do == "start a process":
            return _text_response(str(subprocess.Popen(["sleep", "60"]).pid))
        if do == "hand on the sockets":
            # A process that outlives this one, and has what joins it to the server.
            sockets = _sockets(self._host)
            return _text_response(str(subprocess.Popen(["sleep", "60"], pass_fds=sockets, start_new_session=True).pid))
        if do == "fork":
            # A process that holds everything that this one holds, the sockets too.
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            return _text_response(str(child))
        if do == "say":
            socket = _sockets(self._host)[int(request.parameters["socket"])]
            os.write(socket, bytes.fromhex(str(request.parameters["bytes"])))
            return _text_response("")
        if do == "flood":
            for descriptor in _sockets(self._host):
                os.write(descriptor, b"\xff" * 64)
            return _text_response("")
        raise AssertionError(do)

    def _call(self, request: Request) -> Outcome:
        """Call another model with the inputs, and answer with its responses, each in a parameter of its own."""
        sink = CallSink()
        call = Request("other", 3, sink, dict(request.inputs), ("X",), "id", {"a": 1}, timeout_us=5, correlation_id="c")
        self._host.infer(call, True, [request], request)
        outputs = []
        response: Response | None = None
        taken = 0
        while response is None or not response.is_final:
            sink.news.acquire()
            response = sink.responses[taken]
            taken += 1
            if response.error is not None:
                return response.error
            self._host.consume(call, response.weight)
            for tensor in response.outputs:
                # What is received is the caller's own.
                tensor.as_numpy()[...] += 1
                outputs.append(Tensor(f"{tensor.name}{len(outputs)}", tensor.datatype, tensor.shape, tensor.data))
        return Response("", 0, outputs=outputs, parameters=sink.responses[0].parameters)

    def _stream(self, request: Request) -> None:
        """As many responses as COUNT says, of so many bytes as SIZE says, and then the end."""
        count, size = (int(request.inputs[name].as_numpy()[0]) for name in ("COUNT", "SIZE"))
        for number in range(count):
            outputs = [Tensor.from_numpy("OUT", np.full(size, number % 251, np.uint8))]
            self._host.send(request, Response("", 0, outputs=outputs, parameters={"number": number}, is_final=False))
        self._host.send(request, Response("", 0, is_empty=True))

    def _keep_until_cancelled(self, request: Request) -> None:
        while not request.is_cancelled:
            time.sleep(0.001)
        request.inputs.clear()
        self._kept.clear()
        self._host.send(request, Response("", 0, is_empty=True))

    def _stream_when_cancelled(self, request: Request) -> None:
        while not request.is_cancelled:
            time.sleep(0.001)
        self._host.send(request, Response("", 0, error=CancelledError("gone")))


def _text_response(text: str) -> Response:
    return Response("", 0, outputs=[Tensor.from_numpy("TEXT", np.array([text.encode()], dtype=np.object_))])


def _sockets(host: InstanceHost) -> tuple[int, int, int]:
    """Those that join this process to the server, by `DATA`, `CONTROL` and `SERVICES`."""
    assert isinstance(host, ServiceClient)
    services = host._socket.connection.fileno()
    # The system gives the lowest number that is free.
    data, control = sorted(
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
        and os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        and int(name) != services
    )
    return data, control, services
