"""Write `src/merrow/wire/_generated/` from the .proto files beside this script.

    python protos/generate.py            # needs grpcio-tools; run it after changing a .proto file
    python protos/generate.py --check    # writes nothing; fails when the generated files are not up to date

protoc's own Python output is not used, for two reasons. It registers every file in protobuf's default descriptor pool,
where a process that also imports `tritonclient` (which carries the same files) would collide; and it refuses to run on
a protobuf package older than the protoc that wrote it. Here each module holds the serialised file descriptor and adds
it to one private pool, so it runs on any protobuf from 4.25 on. The `.pyi` files are protoc's, which the type checker
needs and nothing imports.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types

PROTO_DIRECTORY = Path(__file__).resolve().parent
OUTPUT_DIRECTORY = PROTO_DIRECTORY.parent / "src" / "merrow" / "wire" / "_generated"
PACKAGE = "merrow.wire._generated"

# Dependencies first: that is the order in which the pool must learn them.
PROTO_FILES = (
    "model_config.proto",
    "grpc_service.proto",
    "health.proto",
    "reflection_v1.proto",
    "reflection_v1alpha.proto",
)

POOL_MODULE = '''\
"""The descriptor pool of the generated messages. Written by protos/generate.py; do not edit."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
'''

MODULE_HEAD = '''\
# ruff: noqa
"""Messages of {file_name}. Written by protos/generate.py; do not edit."""

from google.protobuf.message_factory import GetMessageClass

{imports}
POOL.AddSerializedFile(
{literal})
DESCRIPTOR = POOL.FindFileByName("{file_name}")

'''

# protoc writes a bare Mapping where a message may be given as a dict, and an untyped **kwargs for a field `global`.
STUB_HEAD = '# ruff: noqa\n# mypy: disable-error-code="type-arg,no-untyped-def"\n'

BYTES_PER_LINE = 28


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a generated file would change")
    options = parser.parse_args(arguments)

    files = generate()
    stale = [name for name, text in files.items() if _current_text(name) != text]
    if options.check:
        for name in stale:
            print(f"{OUTPUT_DIRECTORY / name} is not up to date: run python protos/generate.py", file=sys.stderr)
        return 1 if stale else 0
    OUTPUT_DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (OUTPUT_DIRECTORY / name).write_text(files[name], encoding="utf-8")
        print(f"wrote {OUTPUT_DIRECTORY / name}")
    return 0


def generate() -> dict[str, str]:
    """The text of every generated file, by its name."""
    with tempfile.TemporaryDirectory() as scratch:
        descriptor_path = Path(scratch) / "descriptors.bin"
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={PROTO_DIRECTORY}",
                f"--descriptor_set_out={descriptor_path}",
                f"--pyi_out={scratch}",
                *PROTO_FILES,
            ]
        )
        if status != 0:
            raise SystemExit(f"protoc failed with status {status}")
        descriptors = descriptor_pb2.FileDescriptorSet.FromString(descriptor_path.read_bytes())
        files = {"__init__.py": "", "pool.py": POOL_MODULE}
        for file in descriptors.file:
            module = _module_name(file.name)
            files[f"{module}.py"] = _module_text(file)
            files[f"{module}.pyi"] = _stub_text((Path(scratch) / f"{module}.pyi").read_text(encoding="utf-8"))
    return files


def _module_text(file: descriptor_pb2.FileDescriptorProto) -> str:
    """A module with a class per top-level message, and the enums' values as protoc's modules have them."""
    # Only imported for its effect on the pool: a file can be added after those it depends on.
    imports = [f"from {PACKAGE} import {_module_name(name)}" for name in file.dependency]
    imports.append(f"from {PACKAGE}.pool import POOL\n")
    lines = [MODULE_HEAD.format(file_name=file.name, imports="\n".join(imports), literal=_bytes_literal(file))]
    lines.extend(f"{value.name} = {value.number}\n" for enum in file.enum_type for value in enum.value)
    lines.extend(
        f'{message.name} = GetMessageClass(DESCRIPTOR.message_types_by_name["{message.name}"])\n'
        for message in file.message_type
    )
    return "".join(lines)


def _bytes_literal(file: descriptor_pb2.FileDescriptorProto) -> str:
    serialized = file.SerializeToString(deterministic=True)
    chunks = (serialized[start : start + BYTES_PER_LINE] for start in range(0, len(serialized), BYTES_PER_LINE))
    return "".join(f'    b"{_escape(chunk)}"\n' for chunk in chunks)


def _escape(chunk: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in chunk)


def _stub_text(text: str) -> str:
    """protoc's stub, with its import of a sibling made absolute."""
    for name in PROTO_FILES:
        module = _module_name(name)
        text = text.replace(f"import {module} as ", f"from {PACKAGE} import {module} as ")
    return STUB_HEAD + text


def _module_name(file_name: str) -> str:
    return file_name.removesuffix(".proto") + "_pb2"


def _current_text(name: str) -> str | None:
    try:
        return (OUTPUT_DIRECTORY / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
