"""The wire: committed stubs are fresh, the protos are in order, and every part of them is explained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
STUBS = ROOT / "client" / "gradoracle" / "v1"

# How descriptor.proto numbers the lists through which a SourceCodeInfo path goes.
FILE, MESSAGE, ENUM = (
    descriptor_pb2.FileDescriptorProto,
    descriptor_pb2.DescriptorProto,
    descriptor_pb2.EnumDescriptorProto,
)


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a tool of this environment."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def buf(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `buf lint` on a folder of protos with a buf.yaml."""
    return run(str(Path(sys.executable).with_name("buf")), "lint", cwd=folder)


def compiled(folder: Path, into: Path) -> descriptor_pb2.FileDescriptorSet:
    """The descriptors of the folder's gradoracle/v1/*.proto, with their comments."""
    sources = sorted(str(path) for path in (folder / "gradoracle" / "v1").glob("*.proto"))
    result = run(
        sys.executable,
        *("-m", "grpc_tools.protoc", f"--proto_path={folder}"),
        *("--include_source_info", f"--descriptor_set_out={into}", *sources),
    )
    assert result.returncode == 0, result.stderr
    return descriptor_pb2.FileDescriptorSet.FromString(into.read_bytes())


def uncommented(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    """The names of the parts of a file that no comment explains."""
    paths = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
    return [name for name, path in parts(file) if path not in paths]


def parts(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every message, field, oneof, enum, enum value, service and rpc, with its path in SourceCodeInfo."""
    for i, message in enumerate(file.message_type):
        yield from message_parts(message, message.name, (FILE.MESSAGE_TYPE_FIELD_NUMBER, i))
    for i, enum in enumerate(file.enum_type):
        yield from enum_parts(enum, enum.name, (FILE.ENUM_TYPE_FIELD_NUMBER, i))
    for i, service in enumerate(file.service):
        place = (FILE.SERVICE_FIELD_NUMBER, i)
        yield service.name, place
        for j, method in enumerate(service.method):
            method_list = descriptor_pb2.ServiceDescriptorProto.METHOD_FIELD_NUMBER
            yield f"{service.name}.{method.name}", (*place, method_list, j)


def message_parts(
    message: descriptor_pb2.DescriptorProto, name: str, place: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A message and all within it."""
    yield name, place
    for i, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*place, MESSAGE.FIELD_FIELD_NUMBER, i)
    for i, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # made by protoc for an optional field
            yield f"{name}.{oneof.name}", (*place, MESSAGE.ONEOF_DECL_FIELD_NUMBER, i)
    for i, enum in enumerate(message.enum_type):
        yield from enum_parts(enum, f"{name}.{enum.name}", (*place, MESSAGE.ENUM_TYPE_FIELD_NUMBER, i))
    for i, nested in enumerate(message.nested_type):
        yield from message_parts(nested, f"{name}.{nested.name}", (*place, MESSAGE.NESTED_TYPE_FIELD_NUMBER, i))


def enum_parts(
    enum: descriptor_pb2.EnumDescriptorProto, name: str, place: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """An enum and its values."""
    yield name, place
    for i, value in enumerate(enum.value):
        yield f"{name}.{value.name}", (*place, ENUM.VALUE_FIELD_NUMBER, i)


def differences(ours: Path, theirs: Path) -> list[str]:
    """Names of the generated files that are in one folder only, or differ."""
    names = {path.name for folder in (ours, theirs) for path in folder.iterdir() if "_pb2" in path.name}
    return sorted(name for name in names if content(ours / name) != content(theirs / name))


def content(path: Path) -> bytes | None:
    """The bytes of a file, None where there is none."""
    return path.read_bytes() if path.exists() else None


def test_stubs_are_fresh(tmp_path: Path) -> None:
    """The committed stubs are what generate.py makes of the protos now."""
    result = run(sys.executable, str(PROTO / "generate.py"), str(tmp_path))

    assert result.returncode == 0, result.stderr
    assert [] == differences(tmp_path / "gradoracle" / "v1", STUBS), "run: python proto/generate.py"


def test_a_stale_stub_would_be_noticed(tmp_path: Path) -> None:
    """A stub that differs, one that is missing and one too many each count as a difference."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, files in ((ours, "same changed missing"), (theirs, "same changed extra")):
        folder.mkdir()
        for name in files.split():
            (folder / f"{name}_pb2.py").write_text(folder.name if name == "changed" else "")

    assert ["changed_pb2.py", "extra_pb2.py", "missing_pb2.py"] == differences(ours, theirs)


def test_buf_lint_passes() -> None:
    """The protos keep buf's STANDARD rules."""
    result = buf(PROTO)

    assert (0, "") == (result.returncode, result.stdout + result.stderr)


def test_buf_lint_finds_a_fault(tmp_path: Path) -> None:
    """The rules are really applied: a field in camel case breaks them."""
    (tmp_path / "buf.yaml").write_text((PROTO / "buf.yaml").read_text())
    faulty = tmp_path / "gradoracle" / "v1" / "faulty.proto"
    faulty.parent.mkdir(parents=True)
    faulty.write_text('syntax = "proto3";\npackage gradoracle.v1;\nmessage Faulty { string badName = 1; }\n')

    result = buf(tmp_path)

    assert result.returncode != 0
    assert 'Field name "badName" should be lower_snake_case' in result.stdout


def test_everything_is_explained(tmp_path: Path) -> None:
    """Every message, field, oneof, enum, enum value, service and rpc has a comment."""
    files = compiled(PROTO, tmp_path / "descriptors").file

    assert {"tensor", "graph", "check", "service", "errors"} == {Path(file.name).stem for file in files}
    assert [] == [f"{file.name}: {name}" for file in files for name in uncommented(file)]


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("message Bare {}", "Bare"),
        ("// Said.\nmessage M {\n  string bare = 1;\n}", "M.bare"),
        ("// Said.\nmessage M {\n  oneof bare {\n    // Said.\n    string a = 1;\n  }\n}", "M.bare"),
        ("// Said.\nmessage M {\n  message Bare {}\n}", "M.Bare"),
        ("// Said.\nenum E {\n  E_UNSPECIFIED = 0;\n}", "E.E_UNSPECIFIED"),
        ("// Said.\nmessage M {}\nservice Bare {\n  // Said.\n  rpc R(M) returns (M);\n}", "Bare"),
        ("// Said.\nmessage M {}\n// Said.\nservice S {\n  rpc Bare(M) returns (M);\n}", "S.Bare"),
    ],
)
def test_a_missing_comment_would_be_noticed(tmp_path: Path, source: str, missing: str) -> None:
    """The test above names the part that has no comment, whatever kind it is."""
    faulty = tmp_path / "gradoracle" / "v1" / "faulty.proto"
    faulty.parent.mkdir(parents=True)
    faulty.write_text(f'syntax = "proto3";\npackage gradoracle.v1;\n{source}\n')

    [file] = compiled(tmp_path, tmp_path / "descriptors").file

    assert [missing] == uncommented(file)
