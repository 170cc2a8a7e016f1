"""What is asked of the Python models in `models/python_backend`: the examples of Triton's documentation, and probes.

A probe runs the Python that it is sent, so that anything in `triton_python_backend_utils` can be asked of both servers.
"""

import json
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.oracle.cases import GrpcCase, HttpCase

_CONTENTS = {"INT32": "int_contents", "UINT32": "uint_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}

Input = tuple[str, str, list[int], list[Any]]


def infer(model: str, *inputs: Input, **fields: Any) -> HttpCase:
    """An inference request in JSON."""
    tensors = [{"name": name, "datatype": kind, "shape": shape, "data": data} for name, kind, shape, data in inputs]
    body = json.dumps({"inputs": tensors, **fields}).encode()
    return HttpCase(f"python/{model}/{body.decode()[:200]}", "POST", f"/v2/models/{model}/infer", body=body)


def stream(model: str, *inputs: Input, **fields: Any) -> GrpcCase:
    """One request on a stream of its own."""
    request = pb.ModelInferRequest(model_name=model, **fields)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, kind, shape, data in inputs:
        contents = request.inputs.add(name=name, datatype=kind, shape=shape).contents
        getattr(contents, _CONTENTS[kind]).extend([each.encode() if isinstance(each, str) else each for each in data])
    name = f"python/{model}/{inputs[0][3] if inputs else ''}"[:200]
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    return GrpcCase(name, method, (request.SerializeToString(),), str(request), is_stream=True)


def probe(source: str, model: str = "probe", **fields: Any) -> HttpCase:
    return infer(model, ("SOURCE", "BYTES", [1], [source]), **fields)


def decoupled_probe(source: str) -> GrpcCase:
    return stream("decoupled_probe", ("SOURCE", "BYTES", [1], [source]))


def _pair(left: float, right: float) -> tuple[Input, Input]:
    return ("INPUT0", "FP32", [4], [left] * 4), ("INPUT1", "FP32", [4], [right] * 4)


def _batched(rows: int) -> tuple[Input, Input]:
    numbers = [float(number) for number in range(4 * rows)]
    return ("INPUT0", "FP32", [rows, 4], numbers), ("INPUT1", "FP32", [rows, 4], numbers[::-1])


# Its values become fractions that are written the same everywhere.
_PICTURE = list(b"P6 5 4 64\n" + bytes(range(60)))

EXAMPLES: list[HttpCase | GrpcCase] = [
    infer("add_sub", *_pair(1, 2)),
    infer("add_sub", *_pair(1.5, -2)),
    HttpCase("python/auto_complete/config", "GET", "/v2/models/auto_complete/config"),
    infer("auto_complete", *_batched(1)),
    infer("auto_complete", *_batched(8)),
    infer("auto_complete", *_batched(9)),
    infer("bls_sync", ("MODEL_NAME", "BYTES", [1], ["add_sub"]), *_pair(3, 4)),
    infer("bls_sync", ("MODEL_NAME", "BYTES", [1], ["nothing"]), *_pair(3, 4)),
    infer("bls_sync", ("MODEL_NAME", "BYTES", [1], ["square_int32"]), *_pair(3, 4)),
    infer("bls_sync", ("MODEL_NAME", "BYTES", [1], ["preprocessing"]), *_pair(3, 4)),
    infer("bls_async", *_pair(5, 6)),
    *[infer("bls_decoupled_sync", ("IN", "INT32", [1], [count])) for count in (0, 1, 7, 0, 3)],
    *[infer("bls_decoupled_async", ("IN", "INT32", [1], [count])) for count in (0, 1, 7)],
    *[stream("square_int32", ("IN", "INT32", [1], [count])) for count in (0, 1, 5)],
    stream(
        "repeat_int32",
        ("IN", "INT32", [4], [1, 2, -3, 4]),
        ("DELAY", "UINT32", [4], [0, 5, 0, 1]),
        ("WAIT", "UINT32", [1], [3]),
    ),
    stream("repeat_int32", ("IN", "INT32", [0], []), ("DELAY", "UINT32", [0], []), ("WAIT", "UINT32", [1], [0])),
    *[stream("async_decoupled", ("IN", "INT32", [1], [count])) for count in (0, 1, 5)],
    *[stream("generative", ("IN", "INT32", [1, 1], [count])) for count in (1, 4, 2)],
    *[infer("iterative", ("IN", "INT32", [1, 1], [count])) for count in (1, 4, 2)],
    infer("instance_kind", ("IN", "BYTES", [1], ["x"])),
    infer("preprocessing", ("RAW", "UINT8", [1, len(_PICTURE)], _PICTURE)),
    infer("preprocessing", ("RAW", "UINT8", [1, 8], list(b"P5 1 1 1"))),
    infer("preprocessing", ("RAW", "UINT8", [1, 11], list(b"P5 1 1 1 ab"))),
    *[infer("custom_metrics", ("AMOUNT", "FP64", [1], [amount])) for amount in (1.5, -2.0, 1e9)],
]

_OWN = "pb_utils.InferenceRequest(model_name='m', inputs=[], requested_output_names=[])"

VIEWS = [
    # What instances are told.
    "result = {key: self.args[key] for key in sorted(self.args) if key not in ('model_repository', 'model_config')}",
    "result = self.call_in_initialize",
    "result = pb_utils.get_model_dir().split('/')[-2:]",
    # Requests.
    "result = (request.request_id(), request.correlation_id(), request.flags(), request.timeout())",
    "result = (request.parameters(), sorted(request.requested_output_names()), request.is_cancelled())",
    "result = request.trace().get_context()",
    f"result = {_OWN}.parameters()",
    f"result = {_OWN}.get_response_sender().send(flags=1)",
    f"result = {_OWN}.get_response_sender().send(text('x'))",
]

CALLS = [
    "result = told(sum_of(1, 2).exec())",
    "result = told(sum_of(1, 2, requested_output_names=['OUTPUT1']).exec())",
    "result = told(sum_of(1, 2, requested_output_names=['NOTHING']).exec())",
    "result = told(sum_of(1, 2, model_name='nothing').exec())",
    "result = told(sum_of(1, 2, model_version=7).exec())",
    "result = told(sum_of(1, 2, model_version=1).exec())",
    "result = told(sum_of(1, 2, model_name='square_int32').exec())",
    "result = told(sum_of(1, 2, inputs=[]).exec())",
    "result = [told(each) for each in sum_of(1, 2).exec(decoupled=True)]",
    "result = [told(each) for each in sum_of(1, 2, model_name='nothing').exec(decoupled=True)]",
    "answers = sum_of(1, 2).exec(decoupled=True); result = (len(list(answers)), len(list(answers)))",
    "r = pb_utils.InferenceRequest(model_name='square_int32', inputs=[tensor(3)], requested_output_names=['OUT'])\n"
    "answers = r.exec(decoupled=True); result = ([told(each) for each in answers], len(list(answers)))",
    "r = pb_utils.InferenceRequest(model_name='square_int32', inputs=[tensor(0)], requested_output_names=['OUT'])\n"
    "result = [told(each) for each in r.exec(decoupled=True)]",
    "r = pb_utils.InferenceRequest(model_name='square_int32', inputs=[tensor(2)], requested_output_names=['OUT'])\n"
    "a, b = r.exec(decoupled=True), r.exec(decoupled=True)\n"
    "result = [told(each) for pair in zip(a, b) for each in pair]",
    "r = pb_utils.InferenceRequest(model_name='raw_probe', requested_output_names=[], inputs=[pb_utils.Tensor('SOURCE',"
    " np.array([b'raise ValueError(5)'], object))])\nresult = told(r.exec())",
    "r = pb_utils.InferenceRequest(model_name='raw_probe', requested_output_names=[], request_id='x', "
    "parameters={'a': 1, 'b': 'c'}, correlation_id=7, timeout=5, "
    "inputs=[pb_utils.Tensor('SOURCE', np.array([b'result=[text(str((request."
    "request_id(), request.parameters(), request.correlation_id(), request.timeout(), request.flags())))]'], object))])"
    "\nresult = told(r.exec())",
    "r = pb_utils.InferenceRequest(model_name='raw_probe', requested_output_names=[], inputs=[pb_utils.Tensor('SOURCE',"
    ' np.array([b\'result=[pb_utils.InferenceResponse(error=pb_utils.TritonError("no", pb_utils.TritonError.NOT_FOUND'
    "))]'], object))])\nresult = told(r.exec())",
    # From a thread of the model.
    "import threading\nanswers = []\n"
    "threads = [threading.Thread(target=lambda: answers.append(told(sum_of(1, 2).exec()))) for _ in range(4)]\n"
    "[thread.start() for thread in threads]; [thread.join() for thread in threads]\nresult = answers",
    "import asyncio\nasync def both():\n    return [told(each) for each in await asyncio.gather("
    "sum_of(1, 2).async_exec(), sum_of(3, 4).async_exec())]\nresult = asyncio.run(both())",
    "sum_of(1, 2).async_exec().send(None)",
]

CONTROL = [
    "result = [pb_utils.is_model_ready(*each) for each in (('add_sub',), ('add_sub', '1'), ('add_sub', '2'), ('no',))]",
    "pb_utils.is_model_ready('add_sub', 'x')",
    "pb_utils.is_model_ready('add_sub', '-1')",
    "pb_utils.is_model_ready(5)",
    "pb_utils.load_model('nothing')",
    "pb_utils.load_model('auto_batched', config='nonsense')",
    "pb_utils.load_model('auto_batched', files=5)",
    "pb_utils.load_model('auto_batched', files={'file:1/model.py': 5})",
    "pb_utils.load_model('auto_batched', files={'file:1/model.py': b''})",
    "pb_utils.unload_model('nothing')",
    "pb_utils.unload_model('auto_batched'); time.sleep(0.5); result = pb_utils.is_model_ready('auto_batched')",
    "result = (pb_utils.load_model('auto_batched'), pb_utils.is_model_ready('auto_batched'))",
    "code = open(pb_utils.get_model_dir().replace('probe', 'add_sub') + '/model.py', 'rb').read()\n"
    "config = json.dumps({'name': 'made', 'backend': 'python', 'input': [{'name': 'INPUT0', 'data_type': 'TYPE_FP32',"
    "'dims': [4]}, {'name': 'INPUT1', 'data_type': 'TYPE_FP32', 'dims': [4]}], 'output': [{'name': 'OUTPUT0',"
    "'data_type': 'TYPE_FP32', 'dims': [4]}, {'name': 'OUTPUT1', 'data_type': 'TYPE_FP32', 'dims': [4]}]})\n"
    "pb_utils.load_model('made', config=config, files={'file:1/model.py': code})\n"
    "result = told(sum_of(1, 2, model_name='made').exec())",
    "result = pb_utils.unload_model('made')",
]

# What the server refuses often ends the real one.
METRICS = [
    "pb_utils.MetricFamily(name='n', description='d', kind=0)",
    "family = pb_utils.MetricFamily(name='f', description='d', kind=pb_utils.MetricFamily.COUNTER)\n"
    "self.kept['family'] = family\n"
    "one = self.kept['one'] = family.Metric(labels={'a': 'b'})\none.increment(1.5)\nresult = one.value()",
    "two = self.kept['family'].Metric(labels={'a': 'b'}); two.increment(1); result = self.kept['one'].value()",
    "three = self.kept['family'].Metric(labels={'a': 'c'}); result = three.value()",
    "self.kept['family'].Metric(labels=['a'])",
    "result = self.kept['family'].Metric().value()",
    "again = pb_utils.MetricFamily(name='f', description='d', kind=pb_utils.MetricFamily.COUNTER)\n"
    "result = again.Metric(labels={'a': 'b'}).value()",
    "gauge = pb_utils.MetricFamily(name='g', description='d', kind=pb_utils.MetricFamily.GAUGE); one = gauge.Metric()\n"
    "one.increment(-2); one.set(5); one.increment(-7.5); result = one.value()",
]

VALUES = [
    "pb_utils.InferenceResponse(output_tensors=[None])",
    "result = (pb_utils.InferenceResponse([]).has_error(), pb_utils.InferenceResponse([]).output_tensors())",
    "result = [repr(each) for each in (pb_utils.TritonError.NOT_FOUND, pb_utils.Logger.INFO, "
    "pb_utils.MetricFamily.GAUGE, pb_utils.TRITONSERVER_MEMORY_CPU)]",
    "result = int(pb_utils.TritonError('x', pb_utils.TritonError.CANCELLED).code())",
    "pb_utils.TritonError('x', 3)",
    "pb_utils.Logger.log_info(5)",
    "result = pb_utils.Logger.log('a line', pb_utils.Logger.WARNING)",
    "result = (pb_utils.get_input_tensor_by_name(request, 'no'), pb_utils.get_input_tensor_by_name(request, 'SOURCE')."
    "shape())",
    "result = pb_utils.Tensor('x', [1])",
    "pb_utils.Tensor('', np.zeros(1))",
    "pb_utils.Tensor('x', np.zeros(1, complex))",
    "pb_utils.Tensor('x', np.array([b'x'], object)).to_dlpack()",
    "pb_utils.Tensor.from_dlpack('x', 5)",
    "result = pb_utils.Tensor.from_dlpack('x', pb_utils.Tensor('y', np.arange(3))).as_numpy().tolist()",
]

# `execute` returns `result`, or raises: what the client of a model that is not decoupled sees.
SENDERS = [
    "request.get_response_sender().send(text('sent'), flags=1); result = [None]",
    "request.get_response_sender().send(text('sent'), flags=1); result = None",
    "s = request.get_response_sender(); s.send(text('sent')); s.send(flags=1); result = [None]",
    "request.get_response_sender().send(flags=1)",
    "request.get_response_sender().send()",
    "request.get_response_sender().send(text('x'), flags=2)",
    "s = request.get_response_sender()\ntry: s.send(text('a'), flags=1); s.send(text('b'), flags=1)\n"
    "except Exception as e: print(e)\nresult = [None]",
    "request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_ALL); result = [text('x')]",
    "request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE); result = [text('x')]",
    "result = 5",
    "result = []",
    "result = [5]",
    "result = [text('a'), text('b')]",
    "raise ValueError('boom')",
]

# The sender is at hand; whatever is sent goes to the stream.
DECOUPLED = [
    "sender.send(flags=1)",
    "sender.send(text('a')); sender.send(text('b')); sender.send(flags=1)",
    "sender.send(text('a')); sender.send(text('b'), flags=1)",
    "sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError('no'))); sender.send(text('b'), flags=1)",
    "error = pb_utils.TritonError('no', pb_utils.TritonError.NOT_FOUND)\n"
    "sender.send(pb_utils.InferenceResponse(error=error), flags=1)",
    "sender.send(pb_utils.InferenceResponse([])); sender.send(flags=1)",
    "sender.send(text('a'), flags=1); result = [text('b')]",
    "for s in (request.get_response_sender(), sender): s.send(text('a'))\nsender.send(flags=1)",
    "problems = []\nsender.send(text('a'), flags=1)\n"
    "for args in ((None, 1), (text('b'), 0), (None, 0), (None, 3)):\n"
    "    try: sender.send(*args)\n    except Exception as e: problems.append(str(e))\nprint(problems)",
    "sender.send(text(str(sender.is_cancelled()))); sender.send(flags=1)",
    "sender.send(text('a'), flags=2)",
    "result = [None]",
    "raise ValueError('boom')",
    "sender.send(text('first')); raise ValueError('boom')",
]


GROUPS: dict[str, list[HttpCase | GrpcCase]] = {
    "examples": EXAMPLES,
    "views": [
        *map(probe, VIEWS),
        probe(
            "result = (request.request_id(), request.parameters())", id="x", parameters={"a": 1, "b": "c", "d": True}
        ),
    ],
    "calls": [*map(probe, CALLS)],
    "control": [*map(probe, CONTROL)],
    "metrics": [*map(probe, METRICS)],
    "values": [*map(probe, VALUES)],
    "senders": [probe(source, "raw_probe") for source in SENDERS],
    "decoupled": [*map(decoupled_probe, DECOUPLED)],
}

# Names that dir() shows of everything public, without those that every class has.
PUBLIC_NAMES = """
def public(thing):
    return [name for name in dir(thing) if not name.startswith("_")]
result = {name: public(getattr(pb_utils, name)) for name in public(pb_utils)
          if name in ("InferenceRequest", "InferenceResponse", "Logger", "MetricFamily", "ModelConfig",
                      "PreferredMemory", "Tensor", "TritonError")}
result["pb_utils"] = public(pb_utils)
result["native"] = public(native)
for name in ("InferenceResponseSender", "ResponseIterator", "Metric", "InferenceTrace"):
    result[name] = public(getattr(native, name))
"""
