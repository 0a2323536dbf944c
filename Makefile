# make demo | extract | train | predict | serve | tensorboard | bench | test | lint | clean
#
#   make extract IMAGE_DIR=~/flower_photos      fills CACHE_DIR with the bottlenecks of the photos
#   make train                                  fits a classifier on CACHE_DIR, into OUTPUT_DIR
#   make predict IMAGES="a.jpg 'my b.jpg'"      labels photos with it
#   make serve                                  answers over HTTP, with a page: the classifier in OUTPUT_DIR, or the demo's
#   make bench IMAGE_DIR=~/flower_photos        measures each stage beside its limit
#
# ARGS passes further flags on: make train ARGS="--solver sweep"; python -m train -h lists them.

CACHE_DIR ?= bottlenecks
OUTPUT_DIR ?= retrained
PYTHON ?= python3
DEMO := demo
comma := ,

BIN := .venv/bin
INSTALLED := .venv/installed
# A Linux machine with an NVIDIA driver (under Windows, that of Windows) gets TensorFlow's CUDA packages. Every machine
# gets what is fast on CPUs: a container sees the driver of its machine even if it was given no GPU.
NVIDIA := $(wildcard /proc/driver/nvidia/version /usr/lib/wsl/lib/libcuda.so.1)
EXTRAS := demo,tensorboard,test,openvino,serve$(if $(NVIDIA),$(comma)gpu)

.DEFAULT_GOAL := help
.PHONY: help demo extract train predict serve tensorboard bench test lint clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; name one with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[$(EXTRAS)]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python -m extract.sample $(DEMO)/digits
	@$(BIN)/retrain-extract --image_dir $(DEMO)/digits --cache_dir $(DEMO)/bottlenecks --thumbnails
	@$(BIN)/retrain-train --cache_dir $(DEMO)/bottlenecks --output_dir $(DEMO)/retrained
	@echo 'open $(DEMO)/retrained/latest/report.html in a browser: how good the classifier is, and its mistakes as pictures'
	@echo 'label photos with it: $(BIN)/retrain-predict --model $(DEMO)/retrained $(DEMO)/digits/7/*0.png'
	@echo 'ask it over HTTP, or on a page: make serve'
	@echo 'your own photos, in a folder for each class: make extract IMAGE_DIR=~/my_photos, then make train'

extract: $(INSTALLED)
	@test -n "$(IMAGE_DIR)" || { echo "error: which photos? make extract IMAGE_DIR=~/flower_photos" >&2; exit 2; }
	@$(BIN)/retrain-extract --image_dir "$(IMAGE_DIR)" --cache_dir "$(CACHE_DIR)" $(ARGS)

train: $(INSTALLED)
	@$(BIN)/retrain-train --cache_dir "$(CACHE_DIR)" --output_dir "$(OUTPUT_DIR)" $(ARGS)

predict: $(INSTALLED)
	@test -n "$(IMAGES)" || { echo "error: which photos? make predict IMAGES=photo.jpg" >&2; exit 2; }
	@$(BIN)/retrain-predict --model "$(OUTPUT_DIR)" $(ARGS) $(IMAGES)

# After `make demo` alone, the demo's classifier.
SERVED := $(if $(wildcard $(OUTPUT_DIR)/latest/head.h5),$(OUTPUT_DIR),$(wildcard $(DEMO)/retrained))
serve: $(INSTALLED)
	@$(BIN)/retrain-serve --cache_dir "$(if $(filter $(DEMO)/retrained,$(SERVED)),$(DEMO)/bottlenecks,$(CACHE_DIR))" \
		$(if $(SERVED),--head "$(SERVED)") $(ARGS)

tensorboard: $(INSTALLED)
	$(BIN)/tensorboard --logdir "$(OUTPUT_DIR)/logs"

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks $(if $(IMAGE_DIR),--image_dir "$(IMAGE_DIR)") $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
