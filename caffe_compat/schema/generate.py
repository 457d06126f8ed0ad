"""Write caffe_pb2.py and caffe_pb2.pyi from caffe.proto: `python caffe_compat/schema/generate.py`.

Needs grpcio-tools, which carries protoc; nothing else in the project does. The module holds the serialised
descriptor alone, so it loads on every protobuf runtime from 4.25 on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROTO = "caffe_compat/schema/caffe.proto"
STUB_HEAD = '# mypy: disable-error-code="type-arg, no-untyped-def"\n'
TEMPLATE = '''"""Generated from caffe.proto by caffe_compat.schema.generate; do not edit."""

from google.protobuf import descriptor_pool
from google.protobuf.internal import builder

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(
{lines}
)
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "caffe_compat.schema.caffe_pb2", globals())
'''


def compile_proto(root: Path) -> tuple[bytes, str]:
    """The serialised FileDescriptorProto of caffe.proto below `root`, and its type stub."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)
        args = [f"-I{root}", f"--descriptor_set_out={out / 'set'}", f"--pyi_out={out}", str(root / PROTO)]
        if protoc.main(["protoc", *args]) != 0:
            raise SystemExit("protoc refused caffe.proto")
        files = FileDescriptorSet.FromString((out / "set").read_bytes()).file
        return files[0].SerializeToString(deterministic=True), STUB_HEAD + (out / PROTO).with_name(
            "caffe_pb2.pyi"
        ).read_text()


def module_text(serialized: bytes) -> str:
    """The source of caffe_pb2.py."""
    chunks = [serialized[i : i + 80] for i in range(0, len(serialized), 80)]
    return TEMPLATE.format(lines="\n".join(f"    {chunk!r}" for chunk in chunks))


def main() -> None:
    serialized, stub = compile_proto(HERE.parent.parent)
    (HERE / "caffe_pb2.py").write_text(module_text(serialized))
    (HERE / "caffe_pb2.pyi").write_text(stub)


if __name__ == "__main__":
    main()
