"""pathovit doctor and demo."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from pathovit.cli.app import app
from pathovit.errors import SettingsError

FLOORS = {"openslide-bin": (4, 0, 1), "torch": (2, 10), "zarr": (3, 1, 3), "distributed": (2021, 10), "numcodecs": (0, 16, 6)}
WHY = {
    "openslide-bin": "older ones can be taken over by a crafted slide (CVE-2026-48977)",
    "torch": "older ones can be taken over by a crafted weights file (CVE-2026-24747)",
    "zarr": "older ones write chunks in place, and a killed run leaves torn ones",
    "numcodecs": "older ones run code that a received store brings along (codec `pickle`)",
    "distributed": "older ones let workers listen on every interface (CVE-2021-42343)",
}


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, cores, bundled model."""
    from pathovit.machine import allowed_cores, pick_device, pick_precision
    from pathovit.model.card import read_card
    from pathovit.outputs.provenance import versions
    from pathovit.review.server import BUILT

    faults = []
    for name, version in (versions() | {name: metadata.version(name) for name in FLOORS if name not in versions()}).items():
        floor = FLOORS.get(name)
        old = floor is not None and _numbers(version) < floor
        typer.echo(f"{name:18} {version}{'   TOO OLD' if old else ''}")
        if old:
            faults.append(f"{name} {version}: {WHY[name]}. Update it: pip install -U {name}")
    device = pick_device("auto")
    typer.echo(f"{'device':18} {device}, {str(pick_precision('auto', device)).removeprefix('torch.')}")
    typer.echo(f"{'cores allowed':18} {allowed_cores()}")
    folder, card = read_card("reference")
    typer.echo(f"{'bundled model':18} {folder.name}, {' / '.join(card.target.classes)}")
    built = (BUILT / "review.js").is_file()
    typer.echo(
        f"{'review page':18} {'built' if built else 'not built: the npm registry was out of reach. In a checkout: make page'}"
    )
    if faults:
        raise SettingsError("\n".join(faults))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())


@app.command()
def demo(folder: Annotated[Path, typer.Argument(help="Where to put slides and results.")] = Path("demo")) -> None:
    """Make three sample slides and run on them."""
    from pathovit.cli import options
    from pathovit.cli.run import carry_out
    from pathovit.run.jobs import find_jobs
    from pathovit.run.match import match_model

    maker = slide_maker()
    slides = [folder / "slides" / f"{spec.name}.svs" for spec in maker.demo_specs(3, 7)]
    for spec, path in zip(maker.demo_specs(3, 7), slides, strict=True):
        if not path.is_file():
            sys.stderr.write(f"making {path.name}\n")
            path.parent.mkdir(parents=True, exist_ok=True)
            maker.make_slide(path.parent, spec)
    matched = match_model(options.merge_settings(None), encoder_given=False, model_given=False)
    sys.exit(carry_out(find_jobs(slides), folder / "out", matched, False, False))


def slide_maker() -> Any:
    """The package `sample_data` of a checkout, or its copy inside an installed package."""
    package = Path(__file__).parents[1]
    for folder in (package / "sample_data", package.parent / "sample_data"):
        if (folder / "__init__.py").is_file():
            spec = importlib.util.spec_from_file_location("pathovit_sample_data", folder / "__init__.py")
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # its modules import each other by it
            spec.loader.exec_module(module)
            return module
    raise SettingsError("The script that makes sample slides is missing from this installation. Install pathovit again.")
