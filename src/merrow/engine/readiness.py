"""Readiness as models define it themselves: their instances are asked, and every one must say yes in time.

Source: Triton, python_backend/README.md (`is_ready`), backend_model.cc.
"""

import asyncio
import logging
from collections.abc import Iterable

from merrow.core.errors import ServerError
from merrow.engine.model import Model
from merrow.places.base import PlacedInstance

_LOG = logging.getLogger("merrow.engine")

TIMEOUT_SECONDS = 5.0


async def check_models(models: Iterable[Model]) -> bool:
    """Whether all of them say that they are ready; those without a check of their own do."""
    checks = [
        _check(model, instance)
        for model in models
        for instance in model.driver.instances
        if instance.has_readiness_check
    ]
    return all(await asyncio.gather(*checks))


async def _check(model: Model, instance: PlacedInstance) -> bool:
    reason = ""
    try:
        if await instance.check_readiness(TIMEOUT_SECONDS):
            return True
    except asyncio.TimeoutError:
        reason = f": instance '{instance.name}' did not answer within {TIMEOUT_SECONDS:g} s"
    except ServerError as error:
        reason = f": {error.message}"
    _LOG.warning("%s%s", not_ready(model), reason)
    return False


def not_ready(model: Model) -> str:
    """What a client is told."""
    return f"Model '{model.name}' is not ready (user-defined check failed)."
