# Every target sets up what it needs. `make demo` and `make test` are all that a newcomer types.

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	command -v $$name >/dev/null 2>&1 && \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
READY := .venv/.ready
# TORCH=cuda: torch as the lock file has it. TORCH=cpu: the same versions without CUDA, from PyTorch's own index. Unless it
# is given, that of the existing environment: as its setup noted, or as torch itself says.
INSTALLED := $(shell cat .venv/.torch 2>/dev/null || \
	awk '/^cuda/ {print /None/ ? "cpu" : "cuda"}' .venv/lib/python3*/site-packages/torch/version.py 2>/dev/null)
TORCH ?= $(or $(INSTALLED),cuda)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install --disable-pip-version-check
CUDA_ONLY := ^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==
# One process more than cores (tests/conftest.py), file by file; the longest files first, so that none is left for the end.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/integration tests/web tests/api tests/unit tests/structure

.PHONY: setup same-torch demo up test test-slow browser proxies builder check bench bench-gpu figures soak openapi lock clean

setup: $(READY)

same-torch:
	@case "$(TORCH)" in cuda|cpu) ;; *) echo "TORCH is '$(TORCH)'; it must be cuda or cpu"; exit 1 ;; esac
	@[ ! -e .venv ] || [ "$(or $(INSTALLED),$(TORCH))" = "$(TORCH)" ] || { \
		echo ".venv was made with TORCH=$(INSTALLED); to make it anew: make clean setup TORCH=$(TORCH)"; exit 1; }

$(READY): requirements/all.txt pyproject.toml | same-torch
	@test -n "$(PYTHON)" || { echo "Kernelscope needs Python 3.11 or newer; none was found on PATH."; exit 1; }
	$(PYTHON) -m venv .venv || { echo "This Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "$(TORCH)" > .venv/.torch
	@[ -t 1 ] || quiet=--quiet; case "$(TORCH)" in \
	cuda) echo "installing the locked requirements into .venv (torch with CUDA is most of it: about 6 GB, a few minutes; make setup TORCH=cpu: without CUDA)"; \
		$(PIP) $$quiet --require-hashes -r requirements/all.txt ;; \
	cpu) echo "installing the CPU builds of torch and torchvision, and the other locked requirements, into .venv"; \
		grep -oE '^torch(vision)?==[0-9.]+' requirements/all.txt > .venv/torch.txt && \
		awk '/^[a-z0-9]/ {out = /$(CUDA_ONLY)/} !out' requirements/all.txt > .venv/others.txt && \
		$(PIP) $$quiet --index-url "$(TORCH_CPU_INDEX)" -r .venv/torch.txt && \
		$(PIP) $$quiet --no-deps --require-hashes -r .venv/others.txt ;; esac
	$(PIP) --no-build-isolation --no-deps --quiet -e .
	@touch $(READY)

demo: setup  ## the main job on an embedded stack; pictures in demo/
	$(BIN)/kernelscope demo --out demo

up: setup  ## the stack on this machine, until Ctrl-C
	$(BIN)/kernelscope up

test: setup  ## everything that needs nothing but this repository
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: setup browser proxies  ## what needs real weights or a browser, kills processes or takes long
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --timeout 900 -m "(slow or web) and not (weights or chaos or contract or gpu)"
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --timeout 900 -m "chaos and not gpu" tests/chaos
	$(BIN)/python -m pytest -n 2 --dist loadfile --timeout 900 -m "weights and not (chaos or gpu)" tests/integration
	$(BIN)/python -m pytest --timeout 900 -m "contract and not (chaos or gpu)"  # with the machine to themselves

browser: setup  ## a Chromium for the tests of the page, where there is none
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit; done; \
	{ \
		echo "installing Chromium"; \
		AS=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		{ command -v apt-get >/dev/null && $$AS apt-get update -qq && $$AS apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| $(BIN)/playwright install --with-deps chromium; }

proxies:  ## nginx and Caddy for the tests behind them, on Debian and Ubuntu
	@PATH="$$PATH:/usr/sbin"; command -v nginx >/dev/null && command -v caddy >/dev/null || { \
		echo "installing nginx and Caddy"; AS=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		$$AS apt-get update -qq && $$AS apt-get install -y -qq --no-install-recommends nginx-light caddy >/dev/null; }

check: setup  ## style, types, structure
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/structure

bench: setup  ## the solvers, as JSON
	$(BIN)/python -m benchmarks.solver --json

bench-gpu: setup  ## every GPU benchmark and test; writes docs/performance-gpu.md
	$(BIN)/python -m benchmarks.gpu

figures: setup  ## the paper's figures, in evidence/figures/
	$(BIN)/python -m benchmarks.figures

soak: setup browser proxies builder  ## test-slow at full counts, printing JSON
	$(BIN)/python -m tests.soak

builder: setup  ## what deploy/verify.sh needs, on Debian and Ubuntu
	@command -v buildah >/dev/null && command -v debootstrap >/dev/null || { \
		AS=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		$$AS apt-get update -qq && $$AS apt-get install -y -qq --no-install-recommends buildah debootstrap iproute2 >/dev/null; }

openapi: setup  ## what the API says of itself, into openapi.json
	$(BIN)/python -c "import json; from api.app import create_app; print(json.dumps(create_app().openapi(), indent=1, ensure_ascii=False))" > openapi.json

lock: setup  ## resolve requirements/*.txt anew from pyproject.toml
	$(BIN)/python requirements/lock.py

clean:  ## delete the environment
	rm -rf .venv
