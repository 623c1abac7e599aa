#!/usr/bin/env bash
# Resolve the dependencies anew and write the lock files that tools/bootstrap.py installs. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p requirements
resolve=(uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-strip-extras --quiet "$@")
# hatchling and editables build the editable install, so that no build environment is fetched unlocked
"${resolve[@]}" --all-extras --group dev --group build --output-file requirements/dev.txt
"${resolve[@]}" --extra demo --group build --constraint requirements/dev.txt --output-file requirements/demo.txt
