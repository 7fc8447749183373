"""pathovit settings: a file of settings to begin with, or those of a run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.settings import Settings, settings_from_dict

FIELD = re.compile(r"^    (?P<name>\w+): [^=]+ = (?P<default>.*?)(?:  # (?P<said>.*))?$")


@app.command()
def settings(
    out: Annotated[
        Path | None, typer.Argument(help="Folder of a run: print the settings that it was made by.", show_default=False)
    ] = None,
) -> None:
    """Print a file for --settings: every setting with its default and what it means; or the settings of a run, to use them again.

    pathovit settings > my.toml
    pathovit run slides/ --settings my.toml
    """
    typer.echo("\n".join(_of_run(out) if out else template()))


def template() -> Iterator[str]:
    """Lines of a settings file in which nothing is set: defaults stand behind a #."""
    yield "# Settings of pathovit: take away the # before what you want otherwise. Use it with: pathovit run SLIDES --settings FILE"
    for table in dataclasses.fields(Settings):
        record = table.default_factory
        assert isinstance(record, type)
        yield f"\n[{table.name}]  # {_about(record)}"
        said = {
            found["name"]: found["said"] or "" for line in inspect.getsource(record).splitlines() if (found := FIELD.match(line))
        }
        for name, value in dataclasses.asdict(record()).items():
            comment = f"  # {_without_none(said[name])}" if said.get(name) else ""
            yield f"# {name} = {_toml(value) if value is not None else ''}{comment}"


def _about(record: type) -> str:
    return _without_none((inspect.getdoc(record) or "").splitlines()[0])


def _without_none(text: str) -> str:
    """TOML has no None: what is not set is left out."""
    return text.replace("None means:", "Left out:").replace("None:", "left out:")


def _of_run(out: Path) -> Iterator[str]:
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.records import RecordError
    from pathovit.outputs.runs import last_run

    try:
        folder = OutFolder(out)
        run = last_run(folder).with_names(folder.names())
    except RecordError as error:
        raise SettingsError(f"{out}: {error}") from error
    made = settings_from_dict(json.loads(json.dumps(run.settings)), f"{out}: run.json").to_dict()
    yield f"# Settings of the run of {run.started} into this folder, by pathovit {run.versions['pathovit']}."
    for name, values in made.items():
        yield f"\n[{name}]"
        yield from (f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)


def _toml(value: Any) -> str:
    """A value as TOML; strings as JSON has them, which is the same."""
    return json.dumps(value, ensure_ascii=False)
