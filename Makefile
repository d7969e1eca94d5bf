PYTHON ?= .venv/bin/python
BIN = $(dir $(PYTHON))
PROTOC = $(PYTHON) -m grpc_tools.protoc -I protos
SERVICES = protos/shimd/api/containerd/task_v2.proto protos/shimd/api/containerd/task_v3.proto protos/shimd/api/v1/runtime.proto

.PHONY: protos
protos: ## Write shimd/api/ from protos/
	$(PROTOC) --python_out=. --plugin=protoc-gen-mypy=$(BIN)protoc-gen-mypy --mypy_out=quiet:. protos/shimd/api/*/*.proto
	$(PROTOC) --grpc_python_out=. --plugin=protoc-gen-mypy_grpc=$(BIN)protoc-gen-mypy_grpc --mypy_grpc_out=quiet:. $(SERVICES)
