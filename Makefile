# make reproduce   every notebook at smoke size in a process of its own, and the figures they draw
# make test        what CI runs: lint, then tests/, then the committed notebooks against their outputs
# make prove       builds the image, starts docker-compose.yml and checks what runs in it (200 s)
# PYTHON=/path/to/python makes .venv with that Python; it must be 3.11 or newer.
READY := .venv/.installed

.PHONY: reproduce test lint unit nbval prove clean

reproduce: $(READY)
	.venv/bin/vmrepro notebooks run

test: lint unit nbval

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/hadolint environment/Dockerfile
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.gpu.yml

unit: $(READY)
	.venv/bin/pytest

nbval: $(READY)
	.venv/bin/pytest --nbval

prove:
	environment/prove

$(READY): environment/lock.txt pyproject.toml environment/install.sh environment/papermill.sh
	environment/install.sh .venv
	@touch $@

# Leaves runs/ and figures/ alone: they hold results.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
