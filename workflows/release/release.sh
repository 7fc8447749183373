#!/usr/bin/env bash
# What a release consists of, into dist/: sdist and wheel, the versions that it was tested with, each with its hashes, and what it is made of (SBOM, CycloneDX).
#   pip install build uv cyclonedx-bom && bash workflows/release/release.sh
# Install exactly these versions:   pip install --require-hashes -r requirements.lock && pip install --no-deps dist/pathovit-*.whl
set -euo pipefail
cd "$(dirname "$0")/../.."
uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade pyproject.toml --output-file requirements.lock
python -m build --outdir dist
cp requirements.lock dist/
cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON --output-file dist/sbom.cdx.json
(cd dist && sha256sum -- * > SHA256SUMS)
