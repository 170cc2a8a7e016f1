"""Memory that a client shares with the server, in place of a tensor's data in a message.

Whoever reads or writes such memory does so by copying, at one moment: the client can change or shorten it at any time,
so that nothing may be read twice and trusted the second time, and nothing may be mapped. Where the memory is a file
(`RegionFile`), another process can be given the descriptor and copy for itself.
"""

from collections.abc import Sequence
from typing import Protocol

from merrow.core.tensor import Buffer, Tensor


class RegionFile(Protocol):
    """The file behind a region; `number` is never that of another one."""

    @property
    def number(self) -> int: ...
    @property
    def descriptor(self) -> int: ...


class RegionSlice(Protocol):
    """Part of a region that exists and, when it was found, reached so far.

    It stays usable after the region was unregistered. `file` is None for memory that is no file (a GPU's).
    """

    @property
    def byte_size(self) -> int: ...
    @property
    def file(self) -> RegionFile | None: ...
    @property
    def file_offset(self) -> int: ...

    def read(self) -> Buffer:
        """A copy; zeros for what the client has cut off meanwhile.

        Raises:
            ServerError: the memory cannot be read.
        """

    def write(self, data: Buffer) -> None:
        """Copy to the start of the slice; `data` is no longer than it.

        Raises:
            ServerError: the memory cannot be written to, or is no longer there.
        """


class RegionTensor(Tensor):
    """A tensor in shared memory, whose bytes are copied when `data` is first asked for: where a model runs.

    It lies at the start of `source`, and fills it unless `byte_size` says less.
    """

    __slots__ = ("_byte_size", "_copy", "source")

    def __init__(
        self, name: str, datatype: str, shape: Sequence[int], source: RegionSlice, byte_size: int | None = None
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.source = source
        self._byte_size = source.byte_size if byte_size is None else byte_size
        self._copy: Buffer | None = None

    @property
    def data(self) -> Buffer:  # type: ignore[override]  # a slot of the base class, which nobody writes to
        if self._copy is None:
            self._copy = self.source.read()[: self._byte_size]
        return self._copy

    @property
    def byte_size(self) -> int:
        return self._byte_size

    @property
    def is_copied(self) -> bool:
        """Whether the bytes are settled: what was looked at must not be read again."""
        return self._copy is not None
