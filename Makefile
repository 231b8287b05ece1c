PYTHON ?= python3
BIN := .venv/bin
RUN := experiments/demo
WORKERS = $$($(BIN)/python -c "import os; print(os.cpu_count() + 1)")  # one more than cores, because some tests wait
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: help demo app test test-slow check clean

demo: .venv/installed  ## train, evaluate and fill a hole on the sample photographs
	$(BIN)/python quick_train.py --config debug --save_dir $(RUN) --resume auto
	$(BIN)/python test.py --checkpoint $(RUN)/checkpoints/best_model.pth --test_root sample --test_subset 50 \
	    --save_attention --save_dir $(RUN)/evaluation
	$(BIN)/python test.py --image_path examples/astronaut.png --mask_path examples/astronaut_mask.png \
	    --save_dir $(RUN)/inpainted
	@echo
	@echo "checkpoint  $(RUN)/checkpoints/best_model.pth"
	@echo "metrics     $(RUN)/metrics.csv (training), $(RUN)/evaluation/report.md (beside cv2.inpaint)"
	@echo "images      $(RUN)/visualizations/, $(RUN)/evaluation/test_results.png, $(RUN)/inpainted/astronaut.png"
	@echo "curves      $(BIN)/tensorboard --logdir $(RUN)/logs"

app: .venv/installed-app  ## serve the browser page at http://127.0.0.1:7860
	$(BIN)/python app.py

test: check  ## style, types and tests, as in CI
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report=term

test-slow: .venv/installed-dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: .venv/installed-dev  ## style and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.venv/installed-app: requirements-app.txt .venv/installed
	$(PIP) -r requirements-app.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements-app.txt .venv/installed
	$(PIP) -r requirements-dev.txt
	touch $@

clean:  ## remove the environment and caches, not the experiments
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .coverage
