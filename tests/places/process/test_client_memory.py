"""Tensors in clients' shared memory: a model's process copies them itself, and the server never does."""

import asyncio
import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from merrow.core.region import RegionTensor
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from tests.places.process.place_harness import Sink, outputs_of, running_instance, running_place

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"), pytest.mark.slow]

COUNT = 20_000


class File:
    """The file of a region, as the server has it open."""

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self.descriptor = os.open(path, os.O_RDWR)

    def __del__(self) -> None:
        os.close(self.descriptor)


class Slice:
    """Part of it; the server is not to copy any of it, unless a test says so."""

    def __init__(self, file: File, file_offset: int, byte_size: int) -> None:
        self.file = file
        self.file_offset = file_offset
        self.byte_size = byte_size

    def read(self) -> bytes:
        raise AssertionError("the server has copied an input")

    def write(self, data: object) -> None:
        raise AssertionError("the server has copied an output")


def region_input(name: str, source: Slice) -> RegionTensor:
    return RegionTensor(name, "FP32", (source.byte_size // 4,), source)


def echo(*inputs: Tensor, **regions: Slice) -> Request:
    request = Request("m", 1, Sink(), {tensor.name: tensor for tensor in inputs}, parameters={"do": "echo"})
    request.output_regions = regions or None
    return request


def floats(path: Path, start: int = 0) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.float32)[start : start + COUNT]


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(np.arange(COUNT, dtype=np.float32).tobytes() * 2)
    return path


def files_of(pid: int, path: Path) -> int:
    links = list(Path(f"/proc/{pid}/fd").iterdir())
    return sum(os.readlink(link) == str(path) for link in links if link.is_symlink())


def run(test) -> None:
    async def main() -> None:
        async with running_place() as place, running_instance(place) as (instance, reports):
            await test(instance, reports)

    asyncio.run(main())


def test_inputs_and_outputs_are_copied_by_the_models_process(memory: Path):
    async def test(instance, reports) -> None:
        file = File(memory, 7)
        target = Slice(file, COUNT * 4, COUNT * 4)
        outcome = await reports.ask(instance, echo(region_input("A", Slice(file, 40, COUNT * 4)), A=target))

        (output,) = outcome.outputs
        assert isinstance(output, RegionTensor)
        assert output.source is target
        assert output.byte_size == COUNT * 4

    before = floats(memory, 10)
    run(test)
    np.testing.assert_array_equal(floats(memory, COUNT), before)


def test_a_region_may_be_larger_than_what_goes_there(memory: Path):
    async def test(instance, reports) -> None:
        file = File(memory, 7)
        source = Slice(file, 0, 16_000)
        outcome = await reports.ask(instance, echo(region_input("A", source), A=Slice(file, 80_000, 80_000)))

        (output,) = outcome.outputs
        assert (output.byte_size, output.shape) == (16_000, (4000,))

    run(test)
    np.testing.assert_array_equal(floats(memory, COUNT)[:4000], np.arange(4000))
    np.testing.assert_array_equal(floats(memory, COUNT)[4000:], np.arange(4000, COUNT))


@pytest.mark.parametrize("byte_size", [4, 8192])
def test_small_tensors_travel_in_the_message(memory: Path, byte_size: int):
    class Copied(Slice):
        def read(self) -> bytes:
            return os.pread(self.file.descriptor, self.byte_size, self.file_offset)

    async def test(instance, reports) -> None:
        file = File(memory, 7)
        outcome = await reports.ask(
            instance, echo(region_input("A", Copied(file, 0, byte_size)), A=Slice(file, 0, byte_size))
        )
        assert outputs_of(outcome)["A"].tolist() == list(range(byte_size // 4))
        assert type(outcome.outputs[0]) is Tensor

    run(test)


def test_what_the_server_has_looked_at_is_what_the_model_gets(memory: Path):
    class Copied(Slice):
        def read(self) -> bytes:
            return os.pread(self.file.descriptor, self.byte_size, self.file_offset)

    async def test(instance, reports) -> None:
        tensor = region_input("A", Copied(File(memory, 7), 0, COUNT * 4))
        assert len(tensor.data) == COUNT * 4
        os.truncate(memory, 0)
        outcome = await reports.ask(instance, echo(tensor))
        np.testing.assert_array_equal(outputs_of(outcome)["A"], np.arange(COUNT))

    run(test)


def test_memory_that_shrinks_reads_as_zeros_and_is_not_written_to(memory: Path):
    async def test(instance, reports) -> None:
        file = File(memory, 7)
        os.truncate(memory, 40_000)
        source, target = Slice(file, 0, COUNT * 4), Slice(file, COUNT * 4, COUNT * 4)
        outcome = await reports.ask(instance, echo(region_input("A", source), A=target))
        # It comes to the server, whose own attempt will tell the client.
        values = outputs_of(outcome)["A"]
        np.testing.assert_array_equal(values[:10_000], np.arange(10_000))
        assert not values[10_000:].any()

    run(test)
    assert memory.stat().st_size == 40_000


def test_outputs_that_do_not_fit_or_are_not_wanted_there_come_to_the_server(memory: Path):
    async def test(instance, reports) -> None:
        file = File(memory, 7)
        inputs = [region_input(name, Slice(file, 0, COUNT * 4)) for name in ("A", "B")]
        outcome = await reports.ask(instance, echo(*inputs, A=Slice(file, 0, COUNT * 4 - 4)))
        assert [type(output) for output in outcome.outputs] == [Tensor, Tensor]
        for name in ("A", "B"):
            np.testing.assert_array_equal(outputs_of(outcome)[name], np.arange(COUNT))

    run(test)


def test_a_batch_with_regions_of_several_requests(memory: Path):
    async def test(instance, reports) -> None:
        file = File(memory, 7)
        plain = Tensor.from_numpy("A", np.zeros(3, np.float32))
        execution = await reports.execute(
            instance,
            echo(region_input("A", Slice(file, 0, 40_000))),
            echo(plain),
            echo(region_input("A", Slice(file, 40_000, 40_000)), A=Slice(file, 80_000, 40_000)),
        )
        first, second, third = execution.outcomes
        np.testing.assert_array_equal(outputs_of(first)["A"], np.arange(10_000))
        assert outputs_of(second)["A"].tolist() == [0, 0, 0]
        assert isinstance(third.outputs[0], RegionTensor)

    run(test)
    np.testing.assert_array_equal(floats(memory, COUNT)[:10_000], np.arange(10_000, COUNT))


def test_the_process_lets_go_of_a_file_that_nobody_uses(memory: Path):
    async def test(instance, reports) -> None:
        file = File(memory, 7)
        for _ in range(3):
            await reports.ask(instance, echo(region_input("A", Slice(file, 0, COUNT * 4))))
        assert files_of(instance.process_id, memory) == 1

        reports.reported.clear()
        del file
        gc.collect()
        await asyncio.sleep(0)
        # It answers after it has closed the file.
        await reports.ask(instance, echo(Tensor.from_numpy("A", np.zeros(3, np.float32))))
        assert files_of(instance.process_id, memory) == 0

    run(test)


def test_a_new_process_is_given_the_file_again(memory: Path):
    async def test(instance, reports) -> None:
        file = File(memory, 7)
        await reports.ask(instance, echo(region_input("A", Slice(file, 0, COUNT * 4))))
        os.kill(instance.process_id, 9)
        await reports.wait_for_health(False, True)

        outcome = await reports.ask(instance, echo(region_input("A", Slice(file, 0, COUNT * 4))))

        np.testing.assert_array_equal(outputs_of(outcome)["A"], np.arange(COUNT))

    run(test)
