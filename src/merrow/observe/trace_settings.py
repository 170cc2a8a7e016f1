"""Which requests are traced: the settings, of the server and of single models, and the sampling that they rule.

A model's setting is made of the fields that were set for it, and of the server's for all others; the server's likewise
falls back on what it was started with. A change names fields: a value sets one, None lets it fall back again.

    level           timestamps, contents of tensors, both, or neither (OFF)
    rate            every n-th request is traced, the n-th first; 0 (OpenTelemetry only): those that ask for it
    count           traces that are left, -1 without end; counts down
    log_frequency   traces after which a file of their own is written; 0: one file for all (mode Triton only)

Each change starts a new setting, which counts from the start; traces under way finish under the old one.

Source: Triton, tracer.cc, TraceManager; extension_trace.md.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from merrow.core.errors import InvalidArgumentError
from merrow.settings import TraceMode

FIELDS = ("level", "rate", "count", "log_frequency")


class TraceLevel(enum.IntFlag):
    """What a trace holds."""

    OFF = 0
    TIMESTAMPS = 1
    TENSORS = 2


@dataclass(frozen=True, slots=True)
class TraceValues:
    """The fields of one setting; see the module."""

    level: TraceLevel = TraceLevel.OFF
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0


TraceChanges = Mapping[str, int | None]
"""What a client wants changed: a field of `TraceValues` -> its value, or None to let it fall back."""


class TraceSetting:
    """One setting in force, and what was sampled under it.

    `open_count` are the traces that were begun under it and are not finished; `is_retired` says that it was replaced.
    """

    __slots__ = ("_sample_count", "is_retired", "is_valid", "open_count", "own", "remaining", "values")

    def __init__(self, values: TraceValues, own: frozenset[str], is_valid: bool) -> None:
        self.values = values
        # The fields that were set here, and are not those of what it falls back on.
        self.own = own
        self.is_valid = is_valid
        self.remaining = values.count
        self.open_count = 0
        self.is_retired = False
        self._sample_count = 0

    @property
    def may_sample(self) -> bool:
        """Whether it will ever begin a trace."""
        return self.is_valid and self.remaining != 0

    def sample(self, is_forced: bool) -> bool:
        """Whether this request is to be traced; it then counts as begun. `is_forced`: its client wants it to be."""
        if not self.may_sample:
            return False
        self._sample_count += 1
        rate = self.values.rate
        if not is_forced and (rate == 0 or self._sample_count % rate):
            return False
        if self.remaining > 0:
            self.remaining -= 1
        self.open_count += 1
        return True

    def current(self) -> TraceValues:
        """The values now: the count goes down."""
        values = self.values
        return TraceValues(values.level, values.rate, self.remaining, values.log_frequency)


class TraceTable:
    """The settings of a server.

    Args:
        start: what the server was started with.
        has_file: whether a trace file is named; mode Triton cannot trace without one.
    """

    def __init__(self, start: TraceValues, mode: TraceMode, has_file: bool) -> None:
        self._start = start
        self._mode = mode
        self._has_file = has_file
        self._server = TraceSetting(start, frozenset(), self._invalidity(start) is None)
        self._models: dict[str, TraceSetting] = {}

    def find(self, model_name: str) -> TraceSetting:
        """The setting that a model's requests obey; the server's for ""."""
        return self._models.get(model_name) or self._server

    def settings(self) -> list[TraceSetting]:
        """Every setting in force."""
        return [self._server, *self._models.values()]

    @property
    def may_sample(self) -> bool:
        """Whether any request may be traced."""
        return any(setting.may_sample for setting in self.settings())

    def change(self, model_name: str, changes: TraceChanges) -> list[TraceSetting]:
        """Change a model's setting, or the server's ("").

        Returns:
            The settings that were replaced.

        Raises:
            InvalidArgumentError: the result would trace, and could not; nothing was changed.
        """
        if model_name:
            return self._change_model(model_name, changes)
        replaced = [self._server]
        self._server = self._changed(self._server, self._start, changes)
        for name in list(self._models):
            # What it falls back on has changed.
            replaced += self._change_model(name, {})
        for setting in replaced:
            setting.is_retired = True
        return replaced

    def _change_model(self, model_name: str, changes: TraceChanges) -> list[TraceSetting]:
        known = self._models.get(model_name)
        setting = self._changed(known, self._server.current(), changes)
        if setting.own:
            self._models[model_name] = setting
        else:
            self._models.pop(model_name, None)
        if known is None:
            return []
        known.is_retired = True
        return [known]

    def _changed(self, known: TraceSetting | None, fallback: TraceValues, changes: TraceChanges) -> TraceSetting:
        values: dict[str, int] = {}
        own = set()
        current = None if known is None else known.current()
        for field in FIELDS:
            change = changes.get(field)
            was_own = known is not None and field in known.own
            if change is not None:
                values[field] = change
                own.add(field)
            elif was_own and field not in changes:
                values[field] = getattr(current, field)
                own.add(field)
            else:
                values[field] = getattr(fallback, field)
        level = TraceLevel(values["level"])
        result = TraceValues(level, values["rate"], values["count"], values["log_frequency"])
        problem = self._invalidity(result)
        if problem is not None and level is not TraceLevel.OFF:
            raise InvalidArgumentError(f"Attempting to set invalid trace setting :{problem}")
        return TraceSetting(result, frozenset(own), problem is None)

    def _invalidity(self, values: TraceValues) -> str | None:
        """Why nothing can be traced with these values; None if it can."""
        if values.level is TraceLevel.OFF:
            return "tracing is disabled"
        if self._mode is TraceMode.TRITON and values.rate == 0:
            return "sample rate must be non-zero"
        if self._mode is TraceMode.TRITON and not self._has_file:
            return "trace file name is not given"
        return None
