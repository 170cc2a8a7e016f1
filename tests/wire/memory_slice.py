"""A `RegionSlice` over memory of a test's own."""


class MemorySlice:
    """Part of a bytearray. It is no file, unless the test says that it is one."""

    def __init__(self, memory, offset=0, byte_size=None, file="a file that nobody opens"):
        self.memory = memory
        self.file_offset = offset
        self.byte_size = len(memory) - offset if byte_size is None else byte_size
        self.file = file

    def read(self):
        return bytes(self.memory[self.file_offset : self.file_offset + self.byte_size])

    def write(self, data):
        assert len(data) <= self.byte_size
        self.memory[self.file_offset : self.file_offset + len(data)] = data
