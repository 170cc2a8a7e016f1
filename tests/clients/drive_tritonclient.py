"""Calls every public method of `tritonclient` against a running server, whichever version of it is importable.

    python drive_tritonclient.py http=HOST:PORT grpc=HOST:PORT [ca=FILE] [families=http,grpc,...]

Run as a process of its own, it prints what was not called as JSON: a list for each class, all empty if everything was.
A call that fails, or answers wrongly, ends it. It uses nothing of this project, so that it runs beside an old client.

What there is to call is found by looking at the classes, so that a method of a newer client cannot be forgotten.
"""

import asyncio
import base64
import functools
import inspect
import json
import queue
import sys
import time
import traceback

import numpy as np

TIMEOUT_SECONDS = 20
LEFT = np.array([10, 20, 30, 40], dtype=np.int32)
RIGHT = np.array([1, 2, 3, 4], dtype=np.int32)
FAMILIES = ("http", "http.aio", "grpc", "grpc.aio")
# Of exceptions: what every exception of Python has.
INHERITED = frozenset({"add_note", "with_traceback"})


class Coverage:
    """Which methods of which classes were called."""

    def __init__(self):
        self.called = {}

    def watch(self, module):
        """Wrap the public methods of all classes that a module offers."""
        for name, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__.startswith("tritonclient") and not name.startswith("_") and found not in self.called:
                self.called[found] = dict.fromkeys(self._methods(found), False)
                for method in self.called[found]:
                    self._wrap(found, method)

    def missing(self):
        return {
            f"{found.__module__}.{found.__name__}": [name for name in methods if not self._was_called(found, name)]
            for found, methods in self.called.items()
        }

    def _was_called(self, found, name):
        """On an object of the class, or of one made from it."""
        return any(issubclass(other, found) and methods.get(name) for other, methods in self.called.items())

    @staticmethod
    def _methods(found):
        names = [name for name, value in inspect.getmembers(found) if callable(value) and not name.startswith("_")]
        return [name for name in names if name not in INHERITED]

    def _wrap(self, found, name):
        static = inspect.getattr_static(found, name)
        function = static.__func__ if isinstance(static, (staticmethod, classmethod)) else static

        @functools.wraps(function)
        def wrapper(*arguments, **options):
            self.called[found][name] = True
            return function(*arguments, **options)

        setattr(found, name, type(static)(wrapper) if isinstance(static, (staticmethod, classmethod)) else wrapper)


def check(condition, *what):
    if not condition:
        raise AssertionError(what)


def is_soon(call):
    """Whether a call says yes: a server is not ready while it still unloads what an earlier client unloaded."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not call():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


async def is_soon_async(call):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not await call():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def check_sum(result):
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)


def refusal(error_class, call, *arguments, **options):
    """The error that a call ends with."""
    try:
        call(*arguments, **options)
    except error_class as error:
        return error
    raise AssertionError(f"{call} was not refused")


async def async_refusal(error_class, call, *arguments, **options):
    try:
        await call(*arguments, **options)
    except error_class as error:
        return error
    raise AssertionError(f"{call} was not refused")


def check_error(error):
    check(isinstance(error.message(), str) and error.message(), error)
    error.status()
    error.debug_details()


def add_sub_inputs(module, **options):
    inputs = []
    for name, array in (("INPUT0", LEFT), ("INPUT1", RIGHT)):
        tensor = module.InferInput(name, [1], "INT32")
        check(tensor.name() == name and tensor.datatype() == "INT32" and list(tensor.shape()) == [1])
        tensor.set_shape(list(array.shape))
        tensor.set_data_from_numpy(array, **options)
        inputs.append(tensor)
    return inputs


def has(module, import_name):
    """Whether the client can do what it needs a module for: `http.aio` of 2.41 forgot to import some."""
    return hasattr(sys.modules[module.InferenceServerClient.__module__], import_name)


def repeat_inputs(module, *values):
    inputs = []
    for name, array in (
        ("IN", np.array(values, dtype=np.int32)),
        ("DELAY", np.zeros(len(values), dtype=np.uint32)),
        ("WAIT", np.zeros(1, dtype=np.uint32)),
    ):
        inputs.append(module.InferInput(name, list(array.shape), "INT32" if name == "IN" else "UINT32"))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def slow_input(module):
    tensor = module.InferInput("SECONDS", [1], "FP32")
    tensor.set_data_from_numpy(np.array([TIMEOUT_SECONDS], dtype=np.float32))
    return tensor


def make_plugin(module):
    class Plugin(module.InferenceServerClientPlugin):
        def __call__(self, request):
            request.headers["x-plugin"] = "here"

    return Plugin()


def file_overrides():
    """A model that is on no disk: its configuration, and its code by path."""
    source = (
        "import triton_python_backend_utils as pb_utils\n"
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        outputs = [pb_utils.Tensor('OUT', request.inputs()[0].as_numpy()) for request in requests]\n"
        "        return [pb_utils.InferenceResponse([output]) for output in outputs]\n"
    )
    config = {
        "backend": "python",
        "input": [{"name": "IN", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [{"name": "OUT", "data_type": "TYPE_INT32", "dims": [1]}],
    }
    return json.dumps(config), {"file:1/model.py": source.encode()}


class SharedMemory:
    """A segment with the inputs of `add_sub`, and room for its outputs."""

    KEY = "/merrow-test-drive"
    BYTE_SIZE = 64

    def __enter__(self):
        import tritonclient.utils.shared_memory as shm

        self._shm = shm
        self._handle = shm.create_shared_memory_region("drive", self.KEY, self.BYTE_SIZE)
        shm.set_shared_memory_region(self._handle, [LEFT, RIGHT])
        return self

    def __exit__(self, *exception):
        self._shm.destroy_shared_memory_region(self._handle)

    def tensors(self, module):
        inputs = [module.InferInput(name, [4], "INT32") for name in ("INPUT0", "INPUT1")]
        inputs[0].set_shared_memory("drive", 16)
        inputs[1].set_shared_memory("drive", 16, offset=16)
        outputs = [module.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
        check(outputs[0].name() == "OUTPUT0")
        outputs[0].set_shared_memory("drive", 16, offset=32)
        outputs[1].set_shared_memory("drive", 16, offset=48)
        outputs[1].unset_shared_memory()
        return inputs, outputs

    def check(self, result):
        check(result.get_output("OUTPUT0") is not None)
        array = self._shm.get_contents_as_numpy(self._handle, np.int32, [12])
        np.testing.assert_array_equal(array[8:], LEFT + RIGHT)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)


def drive_http(module, url, tls):
    error_class = module.InferenceServerException
    with module.InferenceServerClient(url, concurrency=4, **_http_tls(tls)) as client:
        plugin = make_plugin(module)
        client.register_plugin(plugin)
        check(client.plugin() is plugin)
        client.unregister_plugin()

        check(client.is_server_live() and is_soon(client.is_server_ready) and client.is_model_ready("add_sub"))
        check(client.get_server_metadata()["name"] == "triton")
        check(client.get_model_metadata("add_sub")["platform"] == "python")
        check(client.get_model_config("add_sub")["backend"] == "python")
        check(client.get_inference_statistics("add_sub")["model_stats"][0]["name"] == "add_sub")
        check("add_sub" in [each["name"] for each in client.get_model_repository_index()])

        for options in ({}, {"binary_data": False}):
            check_sum(client.infer("add_sub", add_sub_inputs(module, **options)))
        for algorithm in ("gzip", "deflate"):
            check_sum(
                client.infer(
                    "add_sub",
                    add_sub_inputs(module),
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
            )
        result = client.async_infer("add_sub", add_sub_inputs(module), request_id="7").get_result()
        check_sum(result)
        check(result.get_response()["id"] == "7")
        classes = client.infer(
            "ident", [_ident_input(module)], outputs=[module.InferRequestedOutput("OUT", class_count=2)]
        )
        check(classes.as_numpy("OUT").tolist() == [[b"15.000000:15", b"14.000000:14"]], classes.as_numpy("OUT"))
        body, header_length = module.InferenceServerClient.generate_request_body(add_sub_inputs(module))
        check(header_length and body)
        text = (
            b'{"model_name":"m","model_version":"1","outputs":[{"name":"O","datatype":"INT32","shape":[1],"data":[5]}]}'
        )
        check(module.InferenceServerClient.parse_response_body(text).as_numpy("O").tolist() == [5])
        check(module.InferResult.from_response_body(text).as_numpy("O").tolist() == [5])

        client.load_model("add_sub")
        config, files = file_overrides()
        client.load_model("of_files", config=config, files=files)
        check(client.is_model_ready("of_files", "1"))
        client.unload_model("of_files")
        client.unload_model("unload_me", unload_dependents=True)
        check(not client.is_model_ready("unload_me"))
        client.load_model("unload_me")

        settings = client.get_log_settings()
        check(client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1)
        restored = {name: value for name, value in settings.items() if name != "log_file"}
        check(client.update_log_settings(restored)["log_verbose_level"] == settings["log_verbose_level"])
        check("trace_rate" in client.get_trace_settings())
        check(client.update_trace_settings(settings={"trace_rate": "500"})["trace_rate"] == "500")
        check(client.update_trace_settings("add_sub", {"trace_rate": "7"})["trace_rate"] == "7")
        client.update_trace_settings("add_sub", {"trace_rate": None})
        client.update_trace_settings(settings={"trace_rate": None})

        with SharedMemory() as memory:
            client.register_system_shared_memory("drive", memory.KEY, memory.BYTE_SIZE)
            check([each["name"] for each in client.get_system_shared_memory_status()] == ["drive"])
            inputs, outputs = memory.tensors(module)
            memory.check(client.infer("add_sub", inputs, outputs=outputs))
            client.unregister_system_shared_memory("drive")
        check(client.get_cuda_shared_memory_status() == [])
        handle = base64.b64encode(bytes(64))
        error = refusal(error_class, client.register_cuda_shared_memory, "c", handle, 0, 8)
        check("shared memory region" in error.message(), error)
        client.unregister_cuda_shared_memory("c")
        error = refusal(error_class, client.infer, "unknown", [])
        check(error.status() == "404", error)
        check_error(error)
        # A client that gives up closes its connection, which ends the request.
        impatient = module.InferenceServerClient(url, network_timeout=0.3, connection_timeout=5, **_http_tls(tls))
        started = time.monotonic()
        refusal(Exception, impatient.infer, "slow", [slow_input(module)])
        check(time.monotonic() - started < TIMEOUT_SECONDS / 2)
        impatient.close()


async def drive_http_aio(module, url, tls):
    error_class = module.InferenceServerException
    async with module.InferenceServerClient(url, **_http_aio_tls(tls)) as client:
        plugin = make_plugin(module)
        client.register_plugin(plugin)
        check(client.plugin() is plugin)
        client.unregister_plugin()

        check(
            await client.is_server_live()
            and await is_soon_async(client.is_server_ready)
            and await client.is_model_ready("add_sub")
        )
        check((await client.get_server_metadata())["name"] == "triton")
        check((await client.get_model_metadata("add_sub"))["platform"] == "python")
        check((await client.get_model_config("add_sub"))["backend"] == "python")
        check((await client.get_inference_statistics("add_sub"))["model_stats"][0]["name"] == "add_sub")
        check("add_sub" in [each["name"] for each in await client.get_model_repository_index()])

        check_sum(await client.infer("add_sub", add_sub_inputs(module)))
        for algorithm in ("gzip", "deflate") if has(module, "gzip") else ():
            check_sum(
                await client.infer(
                    "add_sub",
                    add_sub_inputs(module),
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
            )
        body, header_length = module.InferenceServerClient.generate_request_body(add_sub_inputs(module))
        check(header_length and body)
        text = (
            b'{"model_name":"m","model_version":"1","outputs":[{"name":"O","datatype":"INT32","shape":[1],"data":[5]}]}'
        )
        check(module.InferenceServerClient.parse_response_body(text).as_numpy("O").tolist() == [5])

        await client.load_model("add_sub")
        if has(module, "base64"):
            config, files = file_overrides()
            await client.load_model("of_files", config=config, files=files)
        await client.unload_model("of_files")

        check((await client.update_log_settings({"log_verbose_level": 0}))["log_verbose_level"] == 0)
        check((await client.get_log_settings())["log_verbose_level"] == 0)
        check("trace_rate" in await client.get_trace_settings())
        check((await client.update_trace_settings(settings={"trace_rate": "500"}))["trace_rate"] == "500")
        await client.update_trace_settings(settings={"trace_rate": None})

        with SharedMemory() as memory:
            await client.register_system_shared_memory("drive", memory.KEY, memory.BYTE_SIZE)
            check([each["name"] for each in await client.get_system_shared_memory_status()] == ["drive"])
            inputs, outputs = memory.tensors(module)
            memory.check(await client.infer("add_sub", inputs, outputs=outputs))
            await client.unregister_system_shared_memory("drive")
        check(await client.get_cuda_shared_memory_status() == [])
        handle = base64.b64encode(bytes(64))
        await async_refusal(error_class, client.register_cuda_shared_memory, "c", handle, 0, 8)
        await client.unregister_cuda_shared_memory("c")
        check_error(await async_refusal(error_class, client.infer, "unknown", []))
        request = asyncio.ensure_future(client.infer("slow", [slow_input(module)]))
        await asyncio.sleep(0.2)
        request.cancel()
        await asyncio.wait([request])
        check(request.cancelled())


def drive_grpc(module, url, tls):
    error_class = module.InferenceServerException
    with module.InferenceServerClient(url, **_grpc_tls(tls)) as client:
        plugin = make_plugin(module)
        client.register_plugin(plugin)
        check(client.plugin() is plugin)
        client.unregister_plugin()

        check(client.is_server_live() and is_soon(client.is_server_ready) and client.is_model_ready("add_sub"))
        check(client.get_server_metadata().name == "triton")
        check(client.get_model_metadata("add_sub", as_json=True)["platform"] == "python")
        check(client.get_model_config("add_sub").config.backend == "python")
        check(client.get_inference_statistics("add_sub").model_stats[0].name == "add_sub")
        check("add_sub" in [each.name for each in client.get_model_repository_index().models])

        check_sum(client.infer("add_sub", add_sub_inputs(module)))
        for algorithm in ("gzip", "deflate"):
            check_sum(client.infer("add_sub", add_sub_inputs(module), compression_algorithm=algorithm))
        output = module.InferRequestedOutput("OUT", class_count=2)
        classes = client.infer("ident", [_ident_input(module)], outputs=[output])
        check(classes.as_numpy("OUT").tolist() == [[b"15.000000:15", b"14.000000:14"]])
        answers = queue.Queue()
        client.async_infer("add_sub", add_sub_inputs(module), lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=TIMEOUT_SECONDS)
        check(error is None, error)
        check_sum(result)
        check(result.get_response().model_name == "add_sub" and result.get_output("OUTPUT0").name == "OUTPUT0")
        _cancel_grpc_calls(module, client, error_class)
        _drive_grpc_streams(module, client)

        client.load_model("add_sub")
        config, files = file_overrides()
        client.load_model("of_files", config=config, files=files)
        check(client.is_model_ready("of_files", "1"))
        client.unload_model("of_files", unload_dependents=True)

        check(client.update_log_settings({"log_verbose_level": 1}, as_json=True)["settings"]["log_verbose_level"])
        client.update_log_settings({"log_verbose_level": 0})
        check("log_info" in client.get_log_settings().settings)
        check("trace_rate" in client.get_trace_settings().settings)
        changed = client.update_trace_settings("add_sub", {"trace_rate": "7"})
        check(list(changed.settings["trace_rate"].value) == ["7"])
        client.update_trace_settings("add_sub", {"trace_rate": None})

        with SharedMemory() as memory:
            client.register_system_shared_memory("drive", memory.KEY, memory.BYTE_SIZE)
            check(list(client.get_system_shared_memory_status().regions) == ["drive"])
            inputs, outputs = memory.tensors(module)
            memory.check(client.infer("add_sub", inputs, outputs=outputs))
            client.unregister_system_shared_memory("drive")
        check(len(client.get_cuda_shared_memory_status().regions) == 0)
        refusal(error_class, client.register_cuda_shared_memory, "c", base64.b64encode(bytes(48)), 0, 8)
        client.unregister_cuda_shared_memory("c")
        error = refusal(error_class, client.infer, "unknown", [])
        check(error.status() == "StatusCode.NOT_FOUND", error)
        check_error(error)


def _cancel_grpc_calls(module, client, error_class):
    """By the client, and by the clock."""
    answers = queue.Queue()
    call = client.async_infer("slow", [slow_input(module)], lambda result, error: answers.put((result, error)))
    started = time.monotonic()
    call.cancel()
    result, error = answers.get(timeout=TIMEOUT_SECONDS)
    check(result is None and "CANCELLED" in error.status(), error)
    error = refusal(error_class, client.infer, "slow", [slow_input(module)], client_timeout=0.3)
    check("DEADLINE_EXCEEDED" in error.status(), error)
    check(time.monotonic() - started < TIMEOUT_SECONDS / 2)


def _drive_grpc_streams(module, client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(3):
        client.async_stream_infer("add_sub", add_sub_inputs(module), request_id=str(number))
    for number in range(3):
        result, error = answers.get(timeout=TIMEOUT_SECONDS)
        check(error is None and result.get_response().id == str(number), error)
        check_sum(result)
    client.async_stream_infer("repeat", repeat_inputs(module, 5, 7, 9), enable_empty_final_response=True)
    repeated, is_final = [], False
    while not is_final:
        result, error = answers.get(timeout=TIMEOUT_SECONDS)
        check(error is None, error)
        is_final = result.get_response().parameters["triton_final_response"].bool_param
        if len(result.get_response().outputs):
            repeated.append(int(result.as_numpy("OUT")[0]))
    check(repeated == [5, 7, 9], repeated)
    client.stop_stream()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("slow", [slow_input(module)])
    started = time.monotonic()
    client.stop_stream(cancel_requests=True)
    check(time.monotonic() - started < TIMEOUT_SECONDS / 2)


async def drive_grpc_aio(module, url, tls):
    error_class = module.InferenceServerException
    async with module.InferenceServerClient(url, **_grpc_tls(tls)) as client:
        plugin = make_plugin(module)
        client.register_plugin(plugin)
        check(client.plugin() is plugin)
        client.unregister_plugin()

        check(
            await client.is_server_live()
            and await is_soon_async(client.is_server_ready)
            and await client.is_model_ready("add_sub")
        )
        check((await client.get_server_metadata()).name == "triton")
        check((await client.get_model_metadata("add_sub")).platform == "python")
        check((await client.get_model_config("add_sub")).config.backend == "python")
        check((await client.get_inference_statistics("add_sub")).model_stats[0].name == "add_sub")
        check("add_sub" in [each.name for each in (await client.get_model_repository_index()).models])

        check_sum(await client.infer("add_sub", add_sub_inputs(module)))
        for algorithm in ("gzip", "deflate"):
            check_sum(await client.infer("add_sub", add_sub_inputs(module), compression_algorithm=algorithm))

        async def requests():
            yield {"model_name": "add_sub", "inputs": add_sub_inputs(module), "request_id": "a"}
            yield {"model_name": "repeat", "inputs": repeat_inputs(module, 5, 7), "request_id": "b"}

        received = []
        async for result, error in client.stream_infer(requests()):
            check(error is None, error)
            received.append(result.get_response().id)
        check(sorted(received) == ["a", "b", "b"], received)
        error = await async_refusal(error_class, client.infer, "slow", [slow_input(module)], client_timeout=0.3)
        check("DEADLINE_EXCEEDED" in error.status(), error)
        request = asyncio.ensure_future(client.infer("slow", [slow_input(module)]))
        await asyncio.sleep(0.2)
        request.cancel()
        await asyncio.wait([request])

        await client.load_model("add_sub")
        config, files = file_overrides()
        await client.load_model("of_files", config=config, files=files)
        await client.unload_model("of_files")

        await client.update_log_settings({"log_verbose_level": 0})
        check("log_info" in (await client.get_log_settings()).settings)
        check("trace_rate" in (await client.get_trace_settings()).settings)
        changed = await client.update_trace_settings("add_sub", {"trace_rate": "7"})
        check(list(changed.settings["trace_rate"].value) == ["7"])
        await client.update_trace_settings("add_sub", {"trace_rate": None})

        with SharedMemory() as memory:
            await client.register_system_shared_memory("drive", memory.KEY, memory.BYTE_SIZE)
            check(list((await client.get_system_shared_memory_status()).regions) == ["drive"])
            inputs, outputs = memory.tensors(module)
            memory.check(await client.infer("add_sub", inputs, outputs=outputs))
            await client.unregister_system_shared_memory("drive")
        check(len((await client.get_cuda_shared_memory_status()).regions) == 0)
        await async_refusal(error_class, client.register_cuda_shared_memory, "c", base64.b64encode(bytes(48)), 0, 8)
        await client.unregister_cuda_shared_memory("c")
        check_error(await async_refusal(error_class, client.infer, "unknown", []))


def _ident_input(module):
    tensor = module.InferInput("IN", [1, 16], "FP32")
    tensor.set_data_from_numpy(np.arange(16, dtype=np.float32).reshape(1, 16))
    return tensor


def _http_tls(authority):
    if authority is None:
        return {}
    import ssl

    return {"ssl": True, "ssl_context_factory": lambda: ssl.create_default_context(cafile=authority)}


def _http_aio_tls(authority):
    if authority is None:
        return {}
    import ssl

    return {"ssl": True, "ssl_context": ssl.create_default_context(cafile=authority)}


def _grpc_tls(authority):
    return {} if authority is None else {"ssl": True, "root_certificates": authority}


def main(arguments):
    options = dict(argument.split("=", 1) for argument in arguments)
    families = options.get("families", ",".join(FAMILIES)).split(",")
    import tritonclient.grpc
    import tritonclient.grpc.aio
    import tritonclient.http
    import tritonclient.http.aio

    modules = {
        "http": (tritonclient.http, drive_http),
        "http.aio": (tritonclient.http.aio, drive_http_aio),
        "grpc": (tritonclient.grpc, drive_grpc),
        "grpc.aio": (tritonclient.grpc.aio, drive_grpc_aio),
    }
    coverage = Coverage()
    for family in families:
        coverage.watch(modules[family][0])
    for family in families:
        module, drive = modules[family]
        try:
            outcome = drive(module, options[family.split(".")[0]], options.get("ca"))
            if inspect.iscoroutine(outcome):
                asyncio.run(outcome)
        except BaseException:
            print(f"tritonclient.{family}:", file=sys.stderr)
            traceback.print_exc()
            return 1
    json.dump(coverage.missing(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
