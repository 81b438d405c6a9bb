"""A protoc plugin around grpcio-tools, whose own generator cannot be called as a program."""

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """Service stubs (`*_pb2_grpc.py`) for the files asked for that hold services."""
    response = CodeGeneratorResponse(
        supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        services = [
            file.name
            for file in request.proto_file
            if file.service and file.name in request.file_to_generate
        ]
        if not services:
            return response
        out = Path(folder, "out")
        out.mkdir()
        arguments = [f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *services]
        if protoc.main(["protoc", *arguments]) != 0:
            response.error = "grpc_python: generation failed"
        for made in sorted(out.rglob("*.py")):
            response.file.add(name=made.relative_to(out).as_posix(), content=made.read_text())
    return response


if __name__ == "__main__":
    asked = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(asked).SerializeToString())
