"""The generated module is fresh, and lives beside another caffe.proto in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from caffe_compat.schema import generate, pb
from tests.shared import ROOT, python

GENERATED = ROOT / "caffe_compat" / "schema"

OTHER = """
import sys
from google.protobuf import descriptor_pool, message_factory
descriptor_pool.Default().AddSerializedFile(open(sys.argv[1], "rb").read())
message = descriptor_pool.Default().FindMessageTypeByName("caffe.NetParameter")
Theirs = message_factory.GetMessageClass(message)
"""
OURS = "from caffe_compat.schema import pb\n"
EXCHANGE = """
ours = pb.NetParameter(name="net", layer=[pb.LayerParameter(name="c", type="Convolution")])
theirs = Theirs.FromString(ours.SerializeToString())
assert type(theirs) is not pb.NetParameter
assert theirs.layer[0].type == "Convolution"
assert pb.NetParameter.FromString(theirs.SerializeToString()) == ours
"""


@pytest.fixture(scope="module")
def compiled() -> tuple[bytes, str]:
    return generate.compile_proto(ROOT)


def test_module_is_fresh(compiled: tuple[bytes, str]) -> None:
    assert (GENERATED / "caffe_pb2.py").read_text() == generate.module_text(compiled[0]), "run `make proto`"


def test_stub_is_fresh(compiled: tuple[bytes, str]) -> None:
    assert (GENERATED / "caffe_pb2.pyi").read_text() == compiled[1], "run `make proto`"


def test_names_stay_in_their_package() -> None:
    assert pb.DESCRIPTOR.package == "caffe_compat"
    assert pb.NetParameter.DESCRIPTOR.full_name == "caffe_compat.NetParameter"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A serialised caffe.proto of package `caffe` with the same messages."""
    file = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    file.name, file.package = "caffe.proto", "caffe"
    for message in file.message_type:
        _move(message)
    path = tmp_path / "caffe.set"
    path.write_bytes(file.SerializeToString())
    return path


def _move(message: DescriptorProto) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = field.type_name.replace(".caffe_compat.", ".caffe.")
    for nested in message.nested_type:
        _move(nested)


@pytest.mark.parametrize("order", [OTHER + OURS, OURS + OTHER], ids=["after", "before"])
def test_lives_beside_another_caffe_proto(order: str, foreign: Path) -> None:
    done = python("-c", order + EXCHANGE, str(foreign))
    assert done.returncode == 0, done.stderr
