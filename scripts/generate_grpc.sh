#!/usr/bin/env bash
# Make the Python code of mirage_model/serving/engine.proto. grpcio-tools 1.76 writes code that protobuf 6.31 to 7 load.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet grpcio-tools==1.76.0 'setuptools<80'
"$tools/bin/python" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. mirage_model/serving/engine.proto
