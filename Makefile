# `make` lists the commands.
.DEFAULT_GOAL := help
.PHONY: help install check test slow golden docs

help:  ## list these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install:  ## the package, its extras and the tools, in the tested versions
	pip install -c constraints.txt -e ".[dev,vit]"

check:  ## style and types
	ruff check .
	ruff format --check .
	pyright

test:  ## the whole suite, one process per core
	python -m pytest

slow:  ## the tests that take longer than half a minute
	python -m pytest -m slow

golden:  ## hashes of the final weights of short runs, to compare before and after: make golden FILE=golden.json
	python tests/golden.py write $(FILE)

docs:  ## write docs/families.md and the pictures again, and build the site
	python docs/make_families.py docs/families.md
	python docs/make_pictures.py
	mkdocs build --strict
