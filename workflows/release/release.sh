#!/usr/bin/env bash
# What a release consists of, into an empty dist/: sdist and wheel, the versions that this commit names, each with its hashes, and what it is made of (SBOM, CycloneDX).
#   pip install build cyclonedx-bom && bash workflows/release/release.sh
# Install exactly these versions:   pip install --require-hashes -r dist/requirements.lock && pip install --no-deps dist/pathovit-*.whl
# Newer versions, before the tests are run:   uv pip compile --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade pyproject.toml --output-file requirements.lock
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf dist
python -m build --outdir dist
cp requirements.lock dist/
cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON --output-file dist/sbom.cdx.json
(cd dist && sha256sum -- *.whl *.tar.gz requirements.lock sbom.cdx.json > SHA256SUMS)
