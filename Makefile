# Each target sets up what it needs: on a fresh machine `make demo` alone runs the main job, `make test` alone passes the tests.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?= python3
TILES ?= ../shared/data/camelyon16_tiles
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PINS := pyproject.toml constraints.txt
# What Qt and OpenGL need for a window without a screen or a graphics card, and the browser that the widget is tested in
DEBIAN := chromium xvfb xauth libgl1 libegl1 libgl1-mesa-dri libopengl0 libglib2.0-0 libxkbcommon-x11-0 libdbus-1-3 libfontconfig1 libxcb-cursor0 \
	libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libxcb-xkb1
# Beside torch, numpy, scipy, pillow, tifffile, safetensors, tqdm, filelock, matplotlib, hypothesis and torchvision
WHEELS := zarr numcodecs donfig google-crc32c imagecodecs openslide-python openslide-bin tifffile
# Two processes of one thread each are faster than one of two, and the tests of one file stay together where they can
# Compiled files are kept: each process that a test starts would otherwise compile everything anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-slow lint bench bench-full docs notebooks dist camelyon16-tiles equivalence resolution regression saliency faithfulness gpu gpu-wheels screenshots debian clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

demo: .venv/.base  ## The main job on a synthetic slide; everything it writes is in demo-output/
	$(BIN)/streamview demo

test: .venv/.test debian  ## The tests, those of the napari window under a virtual screen
	$(call on_screen,$(PYTEST))

test-slow: .venv/.test debian  ## The heavier tests, before a release
	$(call on_screen,$(PYTEST) -m slow)

lint: .venv/.test  ## Style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/.test  ## Seed network and ResNet-18 at 2048 px against autograd, checkpointing and lightstream; about 20 minutes
	$(BIN)/python -m benchmarks.peers

bench-full: .venv/.test  ## Seven networks at 512 to 4096 px, ours to 16384, then page and picture; hours, and goes on where it stopped
	$(BIN)/python -m benchmarks.peers --full --json benchmarks/results.jsonl
	$(BIN)/python -m benchmarks.peers --render benchmarks/results.jsonl

docs: .venv/.docs  ## The pages and the API reference as a site, docs/_build/index.html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -j 2 docs docs/_build

camelyon16-tiles: .venv/.test  ## Train and measure the network camelyon16-tiles on TILES, a folder of tiles; half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.camelyon16_tiles --tiles $(TILES) -o camelyon16-tiles

# Experiments of the paper, at a size for two cores; IMAGES is any folder with a folder of images for each class, such as Imagenette's
IMAGES ?= $(TILES)
equivalence: .venv/.test  ## Streamed and conventional training of the same network on IMAGES; a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.equivalence --images $(IMAGES) -o experiments-output/equivalence

resolution: .venv/.test  ## Lesions of three sizes at three resolutions, on composed slides of TILES; half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.resolution --tiles $(TILES) -o experiments-output/resolution

regression: .venv/.test  ## A value in the finest detail at three resolutions, on composed slides of TILES; a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.regression --tiles $(TILES) -o experiments-output/regression

saliency: .venv/.test  ## How well each map finds a lesion, by method and resolution, on composed slides of TILES; half an hour, after resolution
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.saliency --tiles $(TILES) --networks experiments-output/resolution -o experiments-output/saliency

faithfulness: .venv/.test  ## Measure which maps show what a network uses, with TILES, a folder of tiles: table and picture in docs; five minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.faithfulness --tiles $(TILES)

notebooks: .venv/.test  ## Execute the notebooks in examples and save them with their outputs, to be looked at; five minutes
	$(BIN)/python docs/notebooks.py

dist: .venv/pyvenv.cfg $(PINS)  ## Source distribution and wheel, in dist/
	$(BIN)/pip install -q -c constraints.txt hatchling
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist

# Nothing is installed: torch is that of $(PYTHON), and what it lacks comes from wheels/ (made by `make gpu-wheels` where there is an index).
gpu:  ## Checks and measures on a GPU in 9 minutes, with the torch of $(PYTHON); says so where there is none
	@if ls wheels/*.whl >/dev/null 2>&1 && ! $(PYTHON) -c "import openslide, zarr" 2>/dev/null; then \
		$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target wheels/site wheels/*.whl; fi
	PYTHONPATH=.:models:wheels/site $(PYTHON) -m benchmarks.gpu $(GPU)

gpu-wheels:  ## What `make gpu` needs beside torch, for Python 3.12 on Linux, into wheels/
	for package in $(WHEELS); do $(PYTHON) -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		$(addprefix --platform manylinux,_2_28_x86_64 _2_27_x86_64 _2_17_x86_64 2014_x86_64 1_x86_64) -d wheels \
		$$(grep -o "^$$package==[^ ;]*" constraints.txt); done

screenshots: .venv/.test debian  ## The pictures of the napari window in docs/images, to be looked at
	env -u QT_QPA_PLATFORM LIBGL_ALWAYS_SOFTWARE=1 xvfb-run -a -s "-screen 0 1720x1300x24" $(BIN)/python -m benchmarks.screenshots

clean:  ## Remove the environment and all that the targets made
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache demo-output docs/_build dist wheels benchmarks/.lightstream camelyon16-tiles experiments-output

# Without a virtual screen the tests of real windows skip themselves. QT_QPA_PLATFORM=offscreen cannot draw a canvas.
on_screen = if command -v xvfb-run >/dev/null; then \
	env -u QT_QPA_PLATFORM LIBGL_ALWAYS_SOFTWARE=1 xvfb-run -a -s "-screen 0 1600x1000x24" env $(1); else env $(1); fi

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

# torch alone first: pinned exactly, pip takes the build for the processor where one is offered, and the range in pyproject.toml is met.
.venv/.base: .venv/pyvenv.cfg $(PINS)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

# timm and torchvision without what they ask for: the wheel of torchvision would replace torch by its build for CUDA, gigabytes of it.
# tests/support/zoo.py makes them importable; what else timm imports is among what the extra test needs.
.venv/.test: .venv/.base
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/pip install -q --no-deps timm==1.0.31 torchvision==0.28.0
	@touch $@

.venv/.docs: .venv/.base
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

debian:
	@missing=""; \
	if command -v dpkg >/dev/null; then for package in $(DEBIAN); do \
		dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; fi; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then \
			export DEBIAN_FRONTEND=noninteractive; \
			{ apt-get -qq update && apt-get -qq install --no-install-recommends -y $$missing; } >/dev/null \
				|| echo "apt-get could not install$$missing: the tests of real windows may be skipped"; \
		else echo "not installed, and not root to do so:$$missing. The tests of real windows may be skipped"; fi; fi
