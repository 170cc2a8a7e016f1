"""Prometheus' text format, as prometheus-cpp writes it.

A family is its HELP and TYPE lines and its samples. The labels of a sample are formatted before (`label_text`), since
all samples of one model have the same: this is written on the loop's thread, and must be short.

Source: prometheus.io, exposition formats, text-based format; prometheus-cpp, text_serializer.cc.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

CONTENT_TYPE = "text/plain; charset=utf-8"

_LONGEST_PLAIN = 10**16
_MAX_KEPT_BOUNDS = 256


class Sample(NamedTuple):
    """One line: `name` is the family's, with a suffix where its type has them; `labels` with braces, "" for none."""

    name: str
    labels: str
    value: float


class Family(NamedTuple):
    """All samples of one name; `type` is counter, gauge, histogram or summary."""

    name: str
    type: str
    help: str
    samples: Sequence[Sample]


def render(families: Iterable[Family]) -> str:
    """The whole exposition, ending in a newline."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}")
        lines.append(f"# TYPE {family.name} {family.type}")
        lines += [f"{sample.name}{sample.labels} {format_value(sample.value)}" for sample in family.samples]
    lines.append("")
    return "\n".join(lines)


def label_text(labels: Iterable[tuple[str, str]], last: tuple[str, str] | None = None) -> str:
    """Labels with braces, in the order of their names; `last` (`le`, `quantile`) after all others."""
    pairs = [f'{name}="{value.translate(_VALUE_ESCAPES)}"' for name, value in sorted(labels)]
    if last is not None:
        pairs.append(f'{last[0]}="{last[1]}"')
    return "{" + ",".join(pairs) + "}" if pairs else ""


def format_value(value: float) -> str:
    """A number, with sixteen significant digits, as prometheus-cpp prints doubles."""
    if isinstance(value, int) and -_LONGEST_PLAIN < value < _LONGEST_PLAIN:
        # The same, and sooner.
        return str(value)
    if math.isnan(value):
        return "Nan"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.16g}"


def histogram_samples(
    name: str, labels: Sequence[tuple[str, str]], bounds: Sequence[float], counts: Sequence[int], total: float
) -> list[Sample]:
    """The samples of one histogram.

    Args:
        counts: of values at most each bound and above the one before, and of those above the last.
        total: the sum of all values.
    """
    plain = label_text(labels)
    start = f"{plain[:-1]}," if plain else "{"
    samples = [Sample(f"{name}_count", plain, sum(counts)), Sample(f"{name}_sum", plain, total)]
    bucket_name = f"{name}_bucket"
    for end, count in zip(_bound_texts(tuple(bounds)), accumulate(counts), strict=True):
        samples.append(Sample(bucket_name, start + end, count))
    return samples


@lru_cache(_MAX_KEPT_BOUNDS)
def _bound_texts(bounds: tuple[float, ...]) -> list[str]:
    """The label of each bound and of infinity, with the closing brace: the same for all models."""
    return [f'le="{format_value(bound)}"}}' for bound in (*bounds, math.inf)]


_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})
_VALUE_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
