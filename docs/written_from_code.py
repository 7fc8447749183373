"""Pages that the code itself says: every command with its options, every setting, every record on disk, every public object."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import pathovit
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.cli.settings import template

GROUPS = (
    ("One slide", ("analyse_slide", "open_slide", "Slide", "Level", "find_tissue", "TissueMask", "lay_grid", "fill_spec", "TileGrid", "read_tile")),
    ("Many slides, and their results", ("run_folder", "load_results", "load_features", "load_heatmap", "OutFolder", "FeatureStore", "SlideRecord", "RunRecord")),
    ("What comes out", ("SlideFeatures", "TileVerdict", "SlidePrediction", "Heatmap")),
    ("Encoders", ("load_encoder", "own_encoder", "write_encoder", "Encoder", "EncoderRecord", "Embedder")),
    ("Models", ("load_model", "save_model", "SlideModel", "teach", "SlideTransformer", "register_aggregator")),
    ("Settings and errors", ("Settings", "TileSpec", "TissueSettings", "load_settings", "PathovitError", "SettingsError", "SlideError")),
)  # fmt: skip


def write_commands() -> str:
    """reference/commands.md"""
    return "\n".join(
        ["# Commands\n", "Every option, as `--help` says it.\n", *_commands(typer.main.get_command(app), ["pathovit"])]
    )


def _commands(command: object, path: list[str]) -> Iterator[str]:
    for name, one in sorted(getattr(command, "commands", {}).items()):
        words = [*path, name]
        yield f"## {' '.join(words)}\n"
        yield f"{_prose(inspect.cleandoc(one.help or ''))}\n"
        rows = [_row(parameter) for parameter in one.params if not getattr(parameter, "hidden", False)]
        if rows:
            yield "\n".join(["| option | what it says |", "|---|---|", *rows]) + "\n"
        yield from _commands(one, words)


def _prose(text: str) -> str:
    """Lines of commands become blocks of code."""
    lines = [f"\n    {line}\n" if line.startswith("pathovit ") else line for line in text.splitlines()]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def _row(parameter: object) -> str:
    names = [*getattr(parameter, "opts", []), *getattr(parameter, "secondary_opts", [])]
    if type(parameter).__name__.endswith("Argument"):
        names = [str(getattr(parameter, "name", "")).upper()]
    said = str(getattr(parameter, "help", "") or "").replace("\\[", "[").replace("|", "\\|")
    default = getattr(parameter, "default", None)
    if default not in (None, False, True, (), [], "") and "default:" not in said and not callable(default):
        said += f" [default: {default}]"
    return f"| {', '.join(f'`{name}`' for name in names)} | {said} |"


def write_settings() -> str:
    """reference/settings.md"""
    lines = "\n".join(template())
    return f"# Settings\n\nA file for `--settings`, as `pathovit settings` prints it; options of a command win over it.\n\n```toml\n{lines}\n```\n"


def write_records() -> str:
    """reference/records.md, from docs/schemas/"""
    page = [
        "# Records\n",
        "The JSON files of an output folder, field by field; pictures, tables and features: [outputs](../outputs.md).\n",
    ]
    for path in sorted((Path(__file__).parent / "schemas").glob("*.schema.json")):
        schema = json.loads(path.read_text("utf-8"))
        rows = "\n".join(["| field | type | meaning |", "|---|---|---|", *_fields(schema, schema, "")])
        page.append(
            f"## {schema['title']}\n\n{schema['description']} As a schema: {{download}}`{path.name} <../schemas/{path.name}>`.\n\n{rows}\n"
        )
    return "\n".join(page)


def _fields(whole: Any, schema: Any, above: str) -> Iterator[str]:
    """A row for each field, those inside it below it."""
    for name, field in schema.get("properties", {}).items():
        field = _followed(whole, field)
        kinds = [_followed(whole, kind) for kind in field.get("anyOf", field.get("oneOf", [field]))]
        said = field.get("description", "") + ("" if name in schema.get("required", ()) else " (not always there)")
        yield f"| `{above}{name}` | {' or '.join(dict.fromkeys(map(_kind, kinds)))} | {said.strip().replace('|', chr(92) + '|')} |"
        for kind in kinds:
            inside = _followed(whole, kind.get("items", {}))
            more = kind.get("additionalProperties")
            yield from _fields(whole, kind, f"{above}{name}.")
            yield from _fields(whole, inside, f"{above}{name}[].")
            if isinstance(more, dict):
                yield from _fields(whole, _followed(whole, more), f"{above}{name}.*.")


def _followed(whole: Any, field: Any) -> Any:
    reference = field.get("$ref", "")
    found = whole
    for part in reference.removeprefix("#/").split("/") if reference else ():
        found = found[part]
    return {**found, **{key: value for key, value in field.items() if key != "$ref"}} if reference else field


def _kind(field: Any) -> str:
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    kind = field.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def as_numpy_has_it(lines: list[str]) -> list[str]:
    """Our docstrings say `name : what it is`, where numpydoc has a type: what is said goes to a line of its own."""
    found: list[str] = []
    section = ""
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and set(below) == {"-"}:
            section = line
        said = re.match(r"(\S.*?) : (.*)$", line)
        if said and section in ("Parameters", "Raises", "Returns"):
            names = said[1].split(", ") if section == "Raises" else [said[1]]
            for name in names:
                found += [name, f"    {said[2]}"]
        else:
            found.append(line)
    return found


def write_python() -> str:
    """reference/python.md"""
    named = [name for _, names in GROUPS for name in names]
    public = [name for name in pathovit.__all__ if not isinstance(getattr(pathovit, name), str)]
    assert sorted(named) == sorted(public), sorted(set(named) ^ set(public))
    page = ["# Python\n", "What `import pathovit` gives. Importing does no work: a name is loaded when it is first used.\n"]
    for title, names in GROUPS:
        page.append(f"## {title}\n")
        for name in names:
            found = getattr(pathovit, name)
            kind = "autoclass" if inspect.isclass(found) else "autofunction"
            members = "\n:members:" if inspect.isclass(found) and not issubclass(found, Exception) else ""
            page.append(f"```{{eval-rst}}\n.. {kind}:: pathovit.{name}{members.replace(chr(10), chr(10) + '   ')}\n```\n")
    return "\n".join(page)
