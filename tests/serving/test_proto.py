"""The generated code is that of engine.proto."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from mirage_model.serving import engine_pb2, engine_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
PROTO = 'mirage_model/serving/engine.proto'


def test_generated_code_matches_the_proto(tmp_path):
    out = tmp_path / 'set'
    words = ['-m', 'grpc_tools.protoc', '-I.', f'--descriptor_set_out={out}', PROTO]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    (wanted,) = FileDescriptorSet.FromString(out.read_bytes()).file
    found = FileDescriptorProto()
    engine_pb2.DESCRIPTOR.CopyToProto(found)
    for message in (wanted, found):
        _without_json_names(message)
    assert found == wanted
    for method in wanted.service[0].method:
        assert hasattr(engine_pb2_grpc.EngineServicer, method.name), method.name
    methods = {name for name in vars(engine_pb2_grpc.EngineServicer) if name[0].isupper()}
    assert methods == {method.name for method in wanted.service[0].method}


def _without_json_names(message) -> None:
    for each in [*message.message_type, *(n for m in message.message_type for n in m.nested_type)]:
        for field in each.field:
            field.ClearField('json_name')
