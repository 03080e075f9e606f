# Everything lives in .venv; `make demo` and `make test` set it up on a machine that has only Python (3.10+) and make.
# `make test TORCH=2.11.0` takes another torch than that of constraints.txt.
PYTHON ?= python3
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
BIN := .venv/bin
READY := .venv/ready-torch-$(TORCH)

.PHONY: setup demo test test-all stress moved coverage evidence docs lint format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==$(TORCH)' --editable '.[lab,dev]'
	rm -f .venv/ready*
	touch $@

# RigL at 95 % on 300 images of digits, with clean labels and with a fifth of them wrong; ρ is chosen on validation images.
# Repeated, it continues where it stopped, or prints its results again; `make clean` deletes them.
demo: setup
	$(BIN)/flatsparse compare --data digits --train-size 300 --batch-size 64 --epochs 40 --method rigl --sparsity 0.95 \
		--label-noise 0 0.2 --tune --rho-grid 0.1 0.2 0.5 1 --tune-seeds 2 --seeds 8 --out demo --resume

test: setup lint
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal

test-all: setup lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# A hundred and fifty SIGKILLs of all that takes long, eight minutes; a thousand trainings on hostile gradients, four; three hundred damaged files,
# three; a thousand cases of hostile input, three; fifty runs and comparisons twice, for the same bits, three; and fifteen trainings by several
# processes of which one is lost, three.
stress: setup
	$(BIN)/python tests/stress/kill_anywhere.py 150
	$(BIN)/python tests/stress/hostile_numbers.py 1000
	$(BIN)/python tests/stress/damage.py 300
	$(BIN)/python tests/stress/inputs.py 1000
	$(BIN)/python tests/stress/same_bits.py 50
	$(BIN)/python tests/stress/ranks.py 15

# Which loss curves the change since a commit moved, even by one bit.
SINCE ?= HEAD
moved: setup
	$(BIN)/python tests/golden/moved.py $(SINCE)

# The quick tests' coverage of src/, also in the processes that they start; CONTRIBUTING.md says what cannot be seen.
coverage: setup
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m 'not slow' -n 2 --dist worksteal
	$(BIN)/python -m coverage combine
	$(BIN)/python -m coverage report --skip-covered --sort=cover

# The runs behind docs/evidence.md and the pages below it, and these pages. On two cores some ten hours for digits, seven for CIFAR-10 and, with AVX-512, five
# for the paper's own regime. Continues where it stopped; needs FLATSPARSE_DATA. `python benchmarks/evidence_summary.py` writes the page from what there is.
EVIDENCE := evidence_methods free_directions free_directions_page referee referee_page survives survives_page corrupted corrupted_page sweep sweep_page \
	cifar cifar_page regime regime_page evidence_summary
evidence: setup
	set -e; for script in $(EVIDENCE); do $(BIN)/python benchmarks/$$script.py; done

# The pages of the methods and directions, from their docstrings, and the site from all pages, in build/site.
docs: setup
	$(BIN)/python docs/pages.py
	$(BIN)/python -m sphinx -E -W --keep-going -b html docs build/site

lint: setup
	$(BIN)/ruff check src tests benchmarks docs examples hatch_build.py
	$(BIN)/ruff format --check src tests benchmarks docs examples hatch_build.py
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix src tests benchmarks docs examples hatch_build.py
	$(BIN)/ruff format src tests benchmarks docs examples hatch_build.py

clean:
	rm -rf .venv demo build dist docs/api
