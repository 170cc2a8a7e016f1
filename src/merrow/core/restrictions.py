"""Which parts of the API an operator may close to strangers, and the secret that opens one.

Every endpoint and method belongs to one category, or to none (metrics). A restricted category is served only to
requests that carry a header of a given name and value.

Source: Triton, restricted_features.h.
"""

import enum
import hmac
from collections.abc import Mapping
from dataclasses import dataclass


class ApiCategory(enum.Enum):
    """What can be restricted; the value is its name in flags."""

    HEALTH = "health"
    METADATA = "metadata"
    INFERENCE = "inference"
    SHARED_MEMORY = "shared-memory"
    MODEL_CONFIG = "model-config"
    MODEL_REPOSITORY = "model-repository"
    STATISTICS = "statistics"
    TRACE = "trace"
    LOGGING = "logging"


@dataclass(frozen=True, slots=True)
class Restriction:
    """The header that opens a category: its name as the operator wrote it, and the value that it must have."""

    key: str
    value: str

    def admits(self, value: bytes | None) -> bool:
        """Whether a request with this header value, None for no such header, is let in.

        How long it takes says nothing of how much of the value is right.
        """
        return value is not None and hmac.compare_digest(value, self.value.encode("utf-8", "surrogateescape"))


Restrictions = Mapping[ApiCategory, Restriction]
"""The restricted categories of one protocol."""
