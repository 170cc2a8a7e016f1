"""System shared memory over both protocols: a long life of regions, and requests that use them, rightly and wrongly.

The cases of a group belong together: each changes what the next may find. They are made by playing them through on a
simple account of what is registered, which also keeps the real server from what it cannot do: 2.51 answers a second
region of one key with an error, since it has closed the descriptor, and dies of some.
"""

import json
import random
import struct
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.oracle.cases import Case, Group, GrpcCase, HttpCase
from tests.oracle.grpc_cases import SERVICE, infer, unary
from tests.oracle.http_drafts import WRONG_VALUES, infer_target
from tests.oracle.segments import BYTE_SIZE, COUNT, OUTPUT_OFFSET, PLACEHOLDER, TEXT_OFFSET, TEXTS

NAMES = ("r0", "r1", "r2", "r-3.x", "%72", "x" * 60)
PAGE = 4096
PREFIX = "/v2/systemsharedmemory"


def key_of(number: int, slash: bool = True) -> str:
    return ("/" if slash else "") + PLACEHOLDER.decode() + str(number)


def target(action: str, name: str | None, kind: str = "system") -> str:
    region = "" if name is None else f"/region/{name}"
    return f"/v2/{kind}sharedmemory{region}/{action}"


def post(name: str, path: str, document: Any = None, text: bytes | None = None) -> HttpCase:
    body = text if text is not None else b"" if document is None else json.dumps(document).encode()
    # Names beyond ASCII are sent as the bytes that they are.
    return HttpCase(name, "POST", path.encode().decode("latin-1"), (), body)


def get(name: str, path: str) -> HttpCase:
    return HttpCase(name, "GET", path.encode().decode("latin-1"))


class Account:
    """What is registered: the region's name, and the number of its segment and its size."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.regions: dict[str, tuple[int, int]] = {}

    @property
    def free_segments(self) -> list[int]:
        taken = {number for number, _ in self.regions.values()}
        return [number for number in range(COUNT) if number not in taken]

    @property
    def free_names(self) -> list[str]:
        return [name for name in NAMES if name not in self.regions]


def register(account: Account, case_name: str) -> Case | None:
    """A registration that works."""
    rng = account.rng
    if not account.free_segments or not account.free_names:
        return None
    name, number = rng.choice(account.free_names), rng.choice(account.free_segments)
    key = key_of(number, slash=rng.random() < 0.7)
    offset = rng.choice((0, 0, 0, PAGE, 2 * PAGE))
    byte_size = BYTE_SIZE - offset if rng.random() < 0.7 else rng.randint(1, BYTE_SIZE - offset)
    account.regions[name] = (number, byte_size)
    if rng.random() < 0.5:
        document = {"key": key, "byte_size": byte_size}
        if offset or rng.random() < 0.5:
            document["offset"] = offset
        return post(case_name, target("register", name), document)
    message = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
    return unary(case_name, "SystemSharedMemoryRegister", message)


def register_wrongly(account: Account, case_name: str) -> Case | None:
    """A registration that fails, for one of the reasons that there are."""
    rng = account.rng
    if not account.free_segments or not account.free_names:
        return None
    name, number = rng.choice(account.free_names), rng.choice(account.free_segments)
    document: dict[str, Any] = {"key": key_of(number), "offset": 0, "byte_size": BYTE_SIZE}
    kind = rng.randrange(10)
    if kind == 0:
        document["key"] = rng.choice(("/no-such-segment", "no-such-segment", "a/b", "/../etc/passwd", "..", "."))
    elif kind == 1:
        document["byte_size"] = rng.choice((BYTE_SIZE + 1, 2**40, 2**64 - 1))
    elif kind == 2:
        document["offset"], document["byte_size"] = rng.choice(
            ((BYTE_SIZE, 1), (PAGE, BYTE_SIZE), (2**64 - PAGE, PAGE), (2**63, PAGE), (2**64 - 1, 2))
        )
    elif kind == 3:
        document["offset"], document["byte_size"] = rng.choice(((1, 1), (100, 10), (0, 0), (PAGE, 0)))
    elif kind == 4 and account.regions:
        name = rng.choice(list(account.regions))
    elif kind == 5:
        document["key"] = rng.choice(("/triton_python_backend_shm_region_1", "triton_python_backend_shm_region_"))
    elif kind == 6:
        document["key"] = rng.choice(("", "/", "//"))
    elif kind == 7:
        del document[rng.choice(("key", "byte_size"))]
    elif kind == 8:
        document[rng.choice(("key", "byte_size", "offset"))] = rng.choice(WRONG_VALUES)
    else:
        text = rng.choice((b"", b"{", b"[]", b'"x"', b"5", b"null", b"{}", b'{"key":"a" "b"}'))
        return post(case_name, target("register", rng.choice((name, name, None))), text=text)
    if name in account.free_names and _works(document):
        # Some changes do no harm.
        account.regions[name] = (number, document["byte_size"])
    numbers = [document.get(field, 0) for field in ("offset", "byte_size")]
    fits_a_message = type(document.get("key", "")) is str and all(
        type(value) is int and 0 <= value < 2**64 for value in numbers
    )
    if fits_a_message and rng.random() < 0.5:
        message = pb.SystemSharedMemoryRegisterRequest(name=name, **document)
        return unary(case_name, "SystemSharedMemoryRegister", message)
    return post(case_name, target("register", name), document)


def _works(document: dict[str, Any]) -> bool:
    key, offset, byte_size = (
        document.get(field, default) for field, default in (("key", ""), ("offset", 0), ("byte_size", 0))
    )
    return (
        type(key) is str
        and PLACEHOLDER.decode() in key
        and type(offset) is int
        and offset in (0, PAGE)
        and type(byte_size) is int
        and 0 < byte_size <= BYTE_SIZE - offset
    )


def unregister(account: Account, case_name: str) -> Case | None:
    rng = account.rng
    name = rng.choice((*account.regions, "unknown")) if rng.random() < 0.9 else ""
    if name:
        account.regions.pop(name, None)
    else:
        account.regions.clear()
    if rng.random() < 0.5:
        text = rng.choice((b"", b"", b"{", b"{}"))
        return post(case_name, target("unregister", name or None), text=text)
    return unary(case_name, "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))


def status(account: Account, case_name: str) -> Case | None:
    rng = account.rng
    name = rng.choice((*account.regions, *account.regions, "unknown", ""))
    if rng.random() < 0.5:
        return get(case_name, target("status", name or None))
    return unary(case_name, "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name))


def oddity(account: Account, case_name: str) -> Case | None:
    """Wrong methods and paths, and the memory of GPUs that are not there."""
    rng = account.rng
    kind = rng.choice(("system", "cuda"))
    choice = rng.randrange(6)
    if choice == 0:
        method = rng.choice(("GET", "PUT", "DELETE", "POST"))
        action = "status" if method == "POST" else rng.choice(("register", "unregister"))
        return HttpCase(case_name, method, target(action, rng.choice(("r0", None)), kind))
    if choice == 1:
        return get(
            case_name, f"/v2/{kind}sharedmemory/" + rng.choice(("", "region/r0", "region//status", "Status", "status/"))
        )
    if choice == 2:
        return get(case_name, target("status", rng.choice((None, "unknown", *account.regions)), "cuda"))
    if choice == 3:
        name = rng.choice(("", "unknown", *account.regions))
        return unary(case_name, "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name=name))
    if choice == 4:
        return post(case_name, target("unregister", rng.choice((None, "unknown", *account.regions)), "cuda"))
    if rng.random() < 0.5:
        return post(
            case_name, target("register", "c", "cuda"), {"raw_handle": {"b64": "eA=="}, "device_id": 0, "byte_size": 8}
        )
    message = pb.CudaSharedMemoryRegisterRequest(name="c", raw_handle=b"x" * 64, device_id=0, byte_size=8)
    return unary(case_name, "CudaSharedMemoryRegister", message)


ADMIN_STEPS = (register, register, register_wrongly, register_wrongly, unregister, status, status, oddity)


def admin(group: str, count: int) -> Group:
    def generate(seed: int) -> list[Case]:
        account = Account(random.Random(f"{seed}/{group}"))
        cases: list[Case] = []
        while len(cases) < count:
            case = account.rng.choice(ADMIN_STEPS)(account, f"{group}/{len(cases)}")
            if case is not None:
                cases.append(case)
        return [*cases, unregister_all(f"{group}/{len(cases)}")]

    return generate


def unregister_all(case_name: str) -> GrpcCase:
    return unary(case_name, "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest())


# Inference.


FLOATS, STRINGS = ("ident", "IN0", "OUT0", "FP32"), ("text_batched", "IN0", "OUT0", "BYTES")


class Plan:
    """One request: which model, where its input is and where its output goes; a wrong one after `spoil`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.model, self.input_name, self.output_name, self.datatype = rng.choice((FLOATS, FLOATS, STRINGS))
        if self.datatype == "FP32":
            batch_size = rng.randint(1, 8)
            self.shape = [batch_size, 16]
            self.byte_size = batch_size * 64
            offset = rng.randrange(0, 60) * 4
            read_back = rng.random() < 0.4
            self.input: dict[str, Any] = self._region(OUTPUT_OFFSET if read_back else offset, self.byte_size)
        else:
            texts = TEXTS[: rng.randint(1, 3)]
            self.shape = [len(texts), 1]
            self.byte_size = sum(4 + len(text) for text in texts)
            self.input = self._region(TEXT_OFFSET, self.byte_size)
        self.has_input = rng.random() < 0.8
        self.has_output = rng.random() < 0.7 or not self.has_input
        self.output: dict[str, Any] = self._region(
            OUTPUT_OFFSET if self.datatype == "FP32" else 2 * OUTPUT_OFFSET, self.byte_size + rng.choice((0, 0, 100))
        )
        if rng.random() < 0.2:
            self.output["binary_data"] = False

    def _region(self, offset: int, byte_size: int) -> dict[str, Any]:
        region = {"shared_memory_region": "main", "shared_memory_byte_size": byte_size}
        if offset:
            region["shared_memory_offset"] = offset
        return region

    def spoil(self) -> None:
        rng = self.rng
        victim = self.input if self.has_input and (not self.has_output or rng.random() < 0.5) else self.output
        kind = rng.randrange(9)
        if kind == 0:
            victim["shared_memory_region"] = rng.choice(("unknown", "", "Main"))
        elif kind == 1:
            victim["shared_memory_offset"] = rng.choice((BYTE_SIZE, BYTE_SIZE - 1, 2**40, 2**63 - 1))
        elif kind == 2:
            victim["shared_memory_byte_size"] = rng.choice((BYTE_SIZE + 1, BYTE_SIZE, 2**40, 2**63 - 1))
        elif kind == 3:
            victim["shared_memory_byte_size"] = max(1, self.byte_size - rng.choice((1, 4, 60)))
        elif kind == 4:
            victim.pop(rng.choice(("shared_memory_byte_size", "shared_memory_region")))
        elif kind == 5:
            field = rng.choice(("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"))
            victim[field] = rng.choice((None, True, -1, 1.5, "text", 5, []))
        elif kind == 6:
            victim["shared_memory_byte_size"] = 0
        elif kind == 7:
            self.output["classification"] = 2
        else:
            self.output["binary_data"] = True

    def http(self, case_name: str) -> HttpCase:
        tensor: dict[str, Any] = {"name": self.input_name, "datatype": self.datatype, "shape": self.shape}
        blob = b""
        if self.has_input:
            tensor["parameters"] = self.input
        else:
            blob = self._plain_data()
            tensor["parameters"] = {"binary_data_size": len(blob)}
        document: dict[str, Any] = {"inputs": [tensor]}
        if self.has_output:
            document["outputs"] = [{"name": self.output_name, "parameters": self.output}]
        elif self.rng.random() < 0.5:
            document["parameters"] = {"binary_data_output": True}
        text = json.dumps(document).encode()
        headers = (("Inference-Header-Content-Length", str(len(text))),) if blob else ()
        return HttpCase(case_name, "POST", infer_target(self.model), headers, text + blob)

    def grpc(self, case_name: str) -> GrpcCase:
        request = pb.ModelInferRequest(model_name=self.model)
        tensor = request.inputs.add(name=self.input_name, datatype=self.datatype, shape=self.shape)
        if self.has_input:
            _set_parameters(self.rng, tensor.parameters, self.input)
        else:
            request.raw_input_contents.append(self._plain_data())
        if self.has_output:
            _set_parameters(self.rng, request.outputs.add(name=self.output_name).parameters, self.output)
        if self.rng.random() < 0.3:
            return GrpcCase(
                case_name,
                SERVICE + "ModelStreamInfer",
                (request.SerializeToString(deterministic=True),),
                str(request),
                is_stream=True,
            )
        return infer(case_name, request)

    def _plain_data(self) -> bytes:
        if self.datatype == "FP32":
            count = self.byte_size // 4
            return struct.pack(f"<{count}f", *(self.rng.randrange(-999, 999) for _ in range(count)))
        return b"".join(len(text).to_bytes(4, "little") + text for text in TEXTS[: self.shape[0]])


def _set_parameters(rng: random.Random, parameters: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is None or isinstance(value, list):
            parameters[name].SetInParent()
        elif isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        else:
            parameters[name].string_param = value


def inference(group: str, count: int) -> Group:
    def generate(seed: int) -> list[Case]:
        cases: list[Case] = [post(f"{group}/0", target("register", "main"), {"key": key_of(0), "byte_size": BYTE_SIZE})]
        while len(cases) <= count:
            name = f"{group}/{len(cases)}"
            plan = Plan(random.Random(f"{seed}/{name}"))
            if plan.rng.random() < 0.4:
                plan.spoil()
            cases.append(plan.http(name) if plan.rng.random() < 0.5 else plan.grpc(name))
        return [*cases, unregister_all(f"{group}/{len(cases)}")]

    return generate


GROUPS: dict[str, Group] = {
    "shared-memory-admin": admin("shared-memory-admin", 200),
    "shared-memory-infer": inference("shared-memory-infer", 220),
}
