"""The differences from the real Triton 2.51 that are meant to be, each with its reason.

A case whose replies differ must be explained by one of these, and each must explain a case: otherwise the suite fails.
`theirs` and `ours` are searched in the replies as `comparison.describe` writes them; `accepts` looks at the replies
themselves, where text cannot say it.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.oracle.cases import Case
from tests.oracle.comparison import Reply, describe
from tests.oracle.http_exchange import HttpReply

# Relative, of one number: some units in the last place of the double that was read, or of the float it became.
READ_TOLERANCES = {"FP64": 8 * 2.0**-53, "FP32": 2.0**-23}


def _is_same_json(theirs: Reply, ours: Reply) -> bool:
    """The same status and the same JSON value, spelled otherwise."""
    assert isinstance(theirs, HttpReply)
    assert isinstance(ours, HttpReply)
    return theirs.status == ours.status == 200 and _parsed(theirs) == _parsed(ours)


def _has_nearly_the_same_numbers(theirs: Reply, ours: Reply) -> bool:
    """Answers whose floating-point tensors differ by the rounding of what was read, and in nothing else."""
    assert isinstance(theirs, HttpReply)
    assert isinstance(ours, HttpReply)
    if theirs.status != 200 or ours.status != 200:
        return False
    their_outputs, our_outputs = (json.loads(reply.body)["outputs"] for reply in (theirs, ours))
    return len(their_outputs) == len(our_outputs) and all(
        {**their, "data": None} == {**our, "data": None}
        and len(their["data"]) == len(our["data"])
        and all(map(_is_near, their["data"], our["data"], [READ_TOLERANCES[our["datatype"]]] * len(our["data"])))
        for their, our in zip(their_outputs, our_outputs, strict=True)
    )


def _has_an_input_without_shape(theirs: Reply, ours: Reply) -> bool:
    """Validation refuses it, or something after it was found to be wrong before that."""
    assert isinstance(theirs, HttpReply)
    assert isinstance(ours, HttpReply)
    return b"got []. " in ours.body or theirs.status == 400


def _parsed(reply: HttpReply) -> str:
    return json.dumps(json.loads(reply.body))


def _is_near(left: float, right: float, tolerance: float) -> bool:
    return math.isclose(left, right, rel_tol=tolerance) or (math.isnan(left) and math.isnan(right))


@dataclass(frozen=True, slots=True)
class Difference:
    """`cases` is searched in the case's name; `theirs` and `ours` in what the servers answered.

    One that `is_rare` does not show with every seed.
    """

    reason: str
    theirs: str = ""
    ours: str = ""
    cases: str = ""
    accepts: Callable[[Reply, Reply], bool] | None = None
    is_rare: bool = False

    def explains(self, case: Case, theirs: Reply, ours: Reply) -> bool:
        texts = ((self.cases, case.name), (self.theirs, describe(case, theirs)), (self.ours, describe(case, ours)))
        if not all(re.search(pattern, text, re.DOTALL) for pattern, text in texts):
            return False
        return self.accepts is None or self.accepts(theirs, ours)


DIFFERENCES: tuple[Difference, ...] = (
    # What we add.
    Difference(
        "Clients may ask which services there are (--grpc-reflection); Triton has no reflection.",
        cases="^grpc-server/",
        theirs=r"^UNIMPLEMENTED",
        ours="^OK ",
    ),
    # What has changed in Triton since 2.51: we follow 2.73.
    Difference(
        "The version is that of the protocol we follow, 2.73; extensions that we do not have yet are not listed.",
        theirs=r'version"?: ?"2\.51\.0"',
        ours=r'version"?: ?"2\.73\.0"',
    ),
    Difference(
        "2.71: readiness of a model or version that is not there is an error, not only 'not ready' (HTTP).",
        theirs=r'^400 .*\{"error":"Model version not ready"\}$',
        ours=r"^(404|503) .*Request for unknown model: '.*' (is not found|has no available|version \d+ is not)",
    ),
    Difference(
        "2.71: readiness of a model or version that is not there is an error, not only 'not ready' (gRPC).",
        cases="^(grpc-models|bad-messages)/",
        theirs=r"^OK '' \| $",
        ours=r"^(NOT_FOUND|UNAVAILABLE) .Request for unknown model: '",
    ),
    Difference(
        "2.69: a `ready` that is no boolean is the client's mistake.",
        cases="^http-index/",
        theirs='^500 .*"attempt to access JSON non-boolean as boolean"',
        ours="^400 .*\"Invalid value for 'ready': expected a boolean\"",
    ),
    Difference(
        "2.69: the same output twice is refused.",
        theirs="^(200|OK) ",
        ours=r"^(400|INVALID_ARGUMENT) .*output '.*' already exists in request",
    ),
    Difference(
        "2.68: another text for too few values in `data`.",
        theirs="^500 .*Unable to parse 'data': Shape does not match true shape of 'data' field",
        ours="^500 .*Failed to parse 'data' field: shape does not match true shape",
    ),
    Difference(
        "2.62: the header's length must be a number, and in the range of 32 bits.",
        cases="^http-header-lengths/",
        ours="^400 .*Unable to parse Inference-Header-Content-Length, (got|value is out of range)",
    ),
    Difference(
        "2.60: the key of a segment must say something, and not name the Python backend's own memory.",
        cases="^shared-memory-admin/",
        theirs="^(500|INTERNAL) .*Unable to open shared memory region: '/*(triton_python_backend_shm_region_.*)?'",
        ours="^(400|INVALID_ARGUMENT) .*cannot register shared memory region '",
    ),
    Difference(
        "The real server was built for GPUs and finds no memory behind the handle; ours finds no driver.",
        cases="^shared-memory-admin/",
        theirs="^(400|INVALID_ARGUMENT) .*failed to register shared memory region: invalid args",
        ours="^(400|INVALID_ARGUMENT) .*failed to register CUDA shared memory region: 'c', GPUs not supported",
    ),
    Difference(
        "2.68: an empty array of the generate extension is an input without a shape, about which validation decides.",
        cases="^http-generate/",
        theirs=r"^(200 |400 .*The schema can not convert input '.*' to tensor with proper shape)",
        ours=r"^[45]00 ",
        accepts=_has_an_input_without_shape,
    ),
    Difference(
        "2.68: an empty array is taken as it is, so that of two inputs another one is found wrong first.",
        cases="^http-generate/",
        theirs="The schema can not convert input '.*' to tensor with proper shape",
        ours="The schema can not convert input '.*' to tensor with proper shape",
        is_rare=True,
    ),
    # Where HTTP says otherwise than Triton's HTTP library.
    Difference(
        "Bytes that are no HTTP request are told so before the connection is closed.",
        theirs="^closed without a reply$",
        ours="^400 Bad Request .*(unable to parse the request|chunked request body).* closed$",
    ),
    Difference(
        "A path beyond ASCII is no valid request target.",
        theirs="^404 Not Found",
        ours="^400 Bad Request .*Invalid char in url path.* closed$",
    ),
    Difference(
        "`*` is a request target that HTTP knows, and which nothing answers to.",
        theirs="^closed without a reply$",
        ours="^404 Not Found",
    ),
    Difference(
        "The answer to HEAD has no body.",
        cases="^http-methods/",
        theirs=r'^(404|405) .*\{"error":"(Not Found|Method Not Allowed)"\} \| closed$',
        ours=r"^(404|405) [^{]*\|  \| closed$",
    ),
    Difference(
        "The real server loses its way when a chunk of the body ends within the length of a BYTES element.",
        cases="^http-(chunks|transport)/",
        theirs="^400 .*Please make sure the string length indicator is in one buffer",
        ours="^200 ",
    ),
    Difference(
        "The real Python backend cannot count the rows of a request without inputs, which the core let through.",
        theirs="out of bounds index 0: request has 0 inputs",
        ours="^(200|OK) ",
    ),
    Difference(
        "Over gRPC the real server writes the second of two outputs of one name into the first.",
        cases="^grpc-failing-models/18$",
        theirs=r'outputs \{ name: "OUT" datatype: "INT32" (shape: 1 ){4}\} outputs \{ name: "OUT" \}',
        ours=r'(outputs \{ name: "OUT" datatype: "INT32" shape: 1 shape: 1 \} ){2}raw_output_contents',
    ),
    Difference(
        "A BYTES element longer than the data is found by the core, as all such mistakes are, not by the backend.",
        theirs=r"^400 .*content-type:text/plain \| \{\"error\":\"incomplete string data for inference input",
        ours=r"^400 .*content-type:application/json \| \{\"error\":\"incomplete string data for inference input",
    ),
    # Numbers.
    Difference(
        "The same double with another last digit: RapidJSON's Grisu2 does not always find the nearest decimal.",
        cases="^(http-|shared-memory-infer/)",
        accepts=_is_same_json,
    ),
    Difference(
        "RapidJSON reads long decimals with an error of some units in the last place; we read the nearest double.",
        cases="^http-(number-texts|wrong-elements)/",
        accepts=_has_nearly_the_same_numbers,
    ),
    Difference(
        "RapidJSON reads long decimals with an error of some units in the last place; a parameter shows it.",
        cases="^http-(many-)?parameters/",
        theirs=r"9\.999999999999999e\+24",
        ours=r"1e\+25",
    ),
    # The order of a hash table.
    Difference(
        "Which of two inputs with different batch sizes is named depends on the order of a hash table.",
        theirs="input '.*' batch size does not match other inputs for",
        ours="input '.*' batch size does not match other inputs for",
    ),
)


def explanation(case: Case, theirs: Reply, ours: Reply, known: Sequence[Difference] = DIFFERENCES) -> Difference | None:
    """The first entry that explains why these replies differ."""
    return next((entry for entry in known if entry.explains(case, theirs, ours)), None)
