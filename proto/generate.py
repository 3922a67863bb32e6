"""Makes the Python stubs from the .proto files: `python proto/generate.py [FOLDER]`.

FOLDER is where the package `gradoracle/v1` is written; by default the client's, where the stubs are committed. The
protoc is the one inside grpcio-tools, pinned in pyproject.toml to the 6.31 line: its stubs run under protobuf 6.31 and
later and under 7.x, while a newer protoc's would refuse the older runtime.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
STUBS = PROTO.parent / "client"


def generate(into: Path) -> None:
    """Writes the stubs of every proto/gradoracle/v1/*.proto below `into`."""
    sources = sorted(str(path) for path in (PROTO / "gradoracle" / "v1").glob("*.proto"))
    includes = [f"--proto_path={PROTO}", f"--proto_path={resources.files('grpc_tools') / '_proto'}"]
    outputs = [f"--python_out={into}", f"--pyi_out={into}"]
    run(["protoc", *includes, *outputs, *sources])
    # Only the service file has a service; the others' gRPC stubs would be empty files.
    run(["protoc", *includes, f"--grpc_python_out={into}", str(PROTO / "gradoracle" / "v1" / "service.proto")])


def run(arguments: list[str]) -> None:
    """Calls protoc and ends the program where it fails; protoc has then said why."""
    code = protoc.main(arguments)
    if code != 0:
        sys.exit(code)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else STUBS)
