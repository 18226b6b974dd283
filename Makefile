# README's two commands are `make demo` and `make test`. Both set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# On a machine with a GPU what needs one has an environment of its own: onnxruntime and onnxruntime-gpu exclude each other. Elsewhere it
# takes .venv, and says why it skips. TensorRT comes from NVIDIA's index; where that is out of reach: make GPU_EXTRAS=gpu test-gpu
GPU_EXTRAS ?= gpu,tensorrt
ifeq ($(shell command -v nvidia-smi),)
GPU_VENV := $(VENV)
else
GPU_VENV := .venv-gpu
$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[$(GPU_EXTRAS),export,quantize,dev]"
	@touch $(GPU_VENV)/.installed
endif

.PHONY: help install demo demo-dinov2 test test-unit test-full test-slow test-gpu coverage lint format bench bench-cpu bench-gpu clean

help:
	@echo "make demo       export ViT-B/16 and a trained network, classify held-out images without torch, write demo/"
	@echo "make demo-dinov2  recover a trained DINOv2 from an ONNX file, prove it, show what it looks at and finds; writes build/dinov2/"
	@echo "make test       lint, types and tests (10 minutes on 2 cores)"
	@echo "make test-unit  the tests that export nothing and start no engine (90 seconds)"
	@echo "make test-full  lint, types and all tests but the slow ones and those for a GPU"
	@echo "make test-slow  the tests marked slow: ViT-L and ViT-H, full disks, long runs"
	@echo "make test-gpu   the tests marked gpu; they say why they skip where there is none"
	@echo "make coverage   the lines and branches that make test covers"
	@echo "make bench      time exports beside optimum-cli, checkpoints and the runtime; writes benchmarks/results/"
	@echo "make bench-cpu  race PyTorch, onnxruntime, OpenVINO and our files on this CPU, an hour; writes benchmarks/results/cpu and docs/"
	@echo "make bench-gpu  race PyTorch, CUDA, TensorRT and trtexec on this GPU; writes benchmarks/results/gpu and docs/performance-gpu.md"
	@echo "make lint       ruff and mypy; make format mends what ruff can"

# Always with the constraints: they keep torch on the CPU build, and everything on what was tested.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e ".[cpu,openvino,rtx,export,quantize,tune,dev]"
	@touch $(READY)

install: $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py --out demo

demo-dinov2: $(READY)
	$(BIN)/python examples/demo_dinov2.py --out build/dinov2

test: lint
	$(PYTEST) -m "not full and not slow and not gpu"

test-unit: $(READY)
	$(PYTEST) -m "unit and not full"

test-full: lint
	$(PYTEST) -m "not slow and not gpu"

# The branches that `make test` covers; SELECT="not slow and not gpu" measures those of `make test-full`. Shared exports are made again.
SELECT ?= not full and not slow and not gpu
coverage: $(READY)
	rm -rf build/coverage
	mkdir -p build && mkdir -m 777 build/coverage  # some tests run as another user
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(PYTEST) -m "$(SELECT)" -o cache_dir=build/coverage/cache --cov --cov-report=term

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-gpu: $(GPU_VENV)/.installed
	$(GPU_VENV)/bin/python -m pytest -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python benchmarks/runtime_footprint.py --out benchmarks/results/runtime_footprint.json
	$(BIN)/python benchmarks/export_cost.py --out benchmarks/results/export_cost.json
	$(BIN)/python benchmarks/checkpoint_cost.py --out benchmarks/results/checkpoint_cost.json
	$(BIN)/python benchmarks/parity_time.py

bench-cpu: $(READY)
	$(BIN)/python benchmarks/cpu_speed.py --draw docs
	$(BIN)/python benchmarks/cpu_cold_start.py
	$(BIN)/python benchmarks/cpu_profile.py
	$(BIN)/python benchmarks/int8_accuracy.py

bench-gpu: $(GPU_VENV)/.installed
	$(GPU_VENV)/bin/python benchmarks/gpu_speed.py

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist demo
