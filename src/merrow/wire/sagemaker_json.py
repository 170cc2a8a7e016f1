"""JSON of the SageMaker port: the request to load a model, and the descriptions of those that are loaded.

Source: Triton, sagemaker_server.cc; Amazon SageMaker, "Contract for Custom Containers with Multi-Model Endpoints".
"""

from collections.abc import Iterable

from merrow.core.errors import InternalError
from merrow.core.tensor import Buffer
from merrow.wire.triton_json import NOT_STRING, check_input_size, cut_at_nul, decode_json, encode_json


def decode_load_request(body: Buffer, max_input_byte_size: int) -> tuple[str, str]:
    """The name (a hash) and the directory of a model, "" for what is missing; an empty body says nothing.

    Raises:
        ServerError: the body is no JSON, or too large, or one of the two is no string.
    """
    check_input_size(len(body), max_input_byte_size)
    document = decode_json(body) if len(body) else {}
    texts = []
    for name in ("model_name", "url"):
        text = document.get(name, "") if type(document) is dict else ""
        if type(text) is not str:
            raise InternalError(f"Unable to parse '{name}': {NOT_STRING}")
        texts.append(cut_at_nul(text))
    return texts[0], texts[1]


def encode_model(name: str, url: str) -> bytes:
    """The description of one model."""
    return encode_json({"modelName": name, "modelUrl": url})


def encode_models(models: Iterable[tuple[str, str] | None]) -> bytes:
    """The list of models, by name and url; None for one that is not ready."""
    return encode_json(
        {"models": [{} if model is None else {"modelName": model[0], "modelUrl": model[1]} for model in models]}
    )
