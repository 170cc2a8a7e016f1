"""The requests that a child has, by the numbers that both sides know them by. Nothing here has effects.

A batch takes as many numbers as it has requests, and is known by the first. A request is

    in flight   from its batch's `submit` until the answer
    deferred    from an answer that says so until its last response, which may also come before that answer

and then its number means nothing any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from merrow.backends.base import Deferral, Outcome
from merrow.core.request import Request
from merrow.places.process.arena import Bytes


@dataclass(frozen=True, slots=True)
class LentBlock:
    """A block of this side's arena that was lent with a batch."""

    segment: int
    offset: int
    array: Bytes


class OpenRequests:
    """See the module.

    `in_flight` has the batches, with the blocks lent, by the number of their first request, in the order of submission.
    The session puts them in and takes them out itself: a call for each would be paid by every batch.
    """

    def __init__(self) -> None:
        self.in_flight: dict[int, tuple[Sequence[Request], Sequence[LentBlock]]] = {}
        self._deferred: dict[int, Request] = {}
        # By number: since when deferred requests have had no response, as `longest_silence_ns` saw it.
        self._silent_since_ns: dict[int, int] = {}
        # Of those in flight, the numbers of which the last response has come.
        self._ended: set[int] = set()

    @property
    def is_empty(self) -> bool:
        return not self.in_flight and not self._deferred

    @property
    def oldest_batch(self) -> int | None:
        """The number of the batch that was handed over first of those in flight; None if there are none."""
        return next(iter(self.in_flight), None)

    @property
    def has_deferred(self) -> bool:
        """Whether there are requests whose batch came back without their end."""
        return bool(self._deferred)

    def find(self, number: int) -> Request | None:
        """The request of this number, unless it is over."""
        if number in self._ended:
            return None
        deferred = self._deferred.get(number)
        if deferred is not None:
            return deferred
        for first, (requests, _) in self.in_flight.items():
            if first <= number < first + len(requests):
                return requests[number - first]
        return None

    def number_of(self, request: Request) -> int | None:
        """The number of a request; None if it is not here."""
        for number, (requests, _) in self.in_flight.items():
            for index, each in enumerate(requests):
                if each is request:
                    return number + index
        for number, each in self._deferred.items():
            if each is request:
                return number
        return None

    def executing_batch(self, number: int) -> Sequence[Request]:
        """The batch with this request, or, for 0, the one that is being executed; empty if there is none."""
        for first, (requests, _) in self.in_flight.items():
            if not number or first <= number < first + len(requests):
                return requests
        return ()

    def settle(self, number: int, requests: Sequence[Request], outcomes: Sequence[Outcome]) -> list[int]:
        """A batch was answered, and not with responses alone: keep what is deferred.

        Returns:
            The numbers that mean nothing any more from now on.
        """
        over: list[int] = []
        for index, (request, outcome) in enumerate(zip(requests, outcomes, strict=True), number):
            if index in self._ended:
                self._ended.discard(index)
            elif outcome is Deferral.DEFERRED:
                self._deferred[index] = request
            else:
                over.append(index)
        return over

    def take_response(self, number: int, is_final: bool) -> None:
        """A response of the request, which `find` has found, came."""
        if self._silent_since_ns:
            self._silent_since_ns.pop(number, None)
        if is_final and self._deferred.pop(number, None) is None:
            self._ended.add(number)

    def longest_silence_ns(self, now_ns: int) -> int:
        """For how long the deferred request that has waited longest has had no response; 0 if there are none.

        A request's time begins with the first call after it was deferred, or after its last response.
        """
        since_ns = self._silent_since_ns
        return max([now_ns - since_ns.setdefault(number, now_ns) for number in self._deferred], default=0)

    def forgive_silence(self) -> None:
        """The time of deferred requests begins anew."""
        self._silent_since_ns.clear()

    def clear(self) -> tuple[list[Sequence[Request]], list[Request]]:
        """Forget all; returns the batches in flight and the deferred requests."""
        batches = [requests for requests, _ in self.in_flight.values()]
        deferred = list(self._deferred.values())
        self.in_flight.clear()
        self._deferred.clear()
        return batches, deferred
