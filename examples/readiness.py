"""Waiting for a server that was started a moment ago, as by the line before in a README."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tritonclient.utils import InferenceServerException

SECONDS = 60.0


def wait_until_ready(
    client: Any, url: str, seconds: float = SECONDS, is_running: Callable[[], bool] = lambda: True
) -> bool:
    """Whether the server became ready; if not, that was said on standard error.

    Args:
        client: of `tritonclient`, HTTP or gRPC; it is closed.
        url: where it asks.
        is_running: whether there is anything to wait for.
    """
    deadline = time.monotonic() + seconds
    is_told = False
    try:
        while is_running():
            try:
                if client.is_server_ready():
                    return True
            except (OSError, InferenceServerException):
                # Nobody listens yet.
                pass
            if time.monotonic() >= deadline:
                break
            if not is_told:
                print(f"waiting for the server at {url} ...", file=sys.stderr, flush=True)
                is_told = True
            time.sleep(0.05)
        print(f"no server became ready at {url}", file=sys.stderr)
        return False
    finally:
        client.close()
