"""pathovit teach: a few painted regions and stored features to a model, and the maps of all slides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.machine import wait_passively
from pathovit.run.progress import Steps
from pathovit.text import duration


@app.command()
def teach(
    features: Annotated[Path, typer.Argument(help="Folder that `pathovit run` or `embed` wrote.")],
    regions: Annotated[
        list[Path],
        typer.Argument(
            help="GeoJSON of what was painted, as QuPath exports it, named after its slide; or folders of it; or the tissue/names.csv "
            "of a folder whose kinds of tissue were given names."
        ),
    ],
    model: Annotated[Path, typer.Option("--model", "-o", help="Folder to write the model to.")] = Path("taught"),
    positive: Annotated[
        str | None,
        typer.Option("--positive", help="The class whose map is drawn.  \\[default: last in order, but for other tissue]"),
    ] = None,
    suggest: Annotated[int, typer.Option("--suggest", help="Name so many tiles whose class would help most.")] = 0,
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Draw the maps of all slides in the folder.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that was trained. A taught one is replaced anyway.")
    ] = False,
    as_json: options.Json = False,
    when_told: Annotated[
        bool,
        typer.Option("--when-told", hidden=True, help="Make ready, and begin when told to on standard input (the review page)."),
    ] = False,
) -> None:
    """Teach a model on a few painted regions, in seconds, and draw the maps of all slides anew; no slide is read again.

    Paint about five short strokes of every class, in different places; look at the maps; paint where they are wrong; repeat.
    """
    wait_passively()
    from pathovit.cli.predict import last_settings
    from pathovit.cli.run import leave, stoppable
    from pathovit.model.card_text import describe_taught, say_taught
    from pathovit.model.judged import say_left_out
    from pathovit.model.slide_model import save_model
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.inventory import writing
    from pathovit.outputs.lease import lease
    from pathovit.study.lessons import read_lessons
    from pathovit.study.teach import learn

    if when_told:
        regions, positive = _wait_until_told()
    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    _refuse_trained(model, overwrite)
    out, steps = OutFolder(features), Steps()
    given = read_lessons(out, regions, positive, options.note, lambda done, total: steps("reading features", done, total))
    with lease(model, "--model"):
        taught = save_model(model, learn(given), describe_taught)
    shown = taught.card.values["taught"]
    sys.stderr.write("\n".join([say_taught(shown), *say_left_out(shown["left_out"])]) + "\n")
    code = 0
    if maps:
        from pathovit.run.redraw import redraw_folder

        with writing(features), stoppable() as stop:
            painted = {lesson.stored.slide_id for lesson in given.lessons}
            record = redraw_folder(
                out,
                model,
                last_settings(features),
                sys.argv[1:],
                lambda done, total: steps("maps drawn", done, total),
                stop,
                painted,
            )
        code = record.exit_code or 0
        for outcome in record.outcomes:
            if outcome.stage == "failed":
                sys.stderr.write(
                    f"  failed  {outcome.file or out.name_of(outcome.slide_id) or outcome.slide_id}: {outcome.reason.splitlines()[0]}\n"
                )
        sys.stderr.write(
            f"{record.slides_done} of {len(record.slides)} maps drawn in {duration(record.seconds or 0.0)}: {out.report}\n"
        )
    if suggest and code <= 3:
        from pathovit.study.suggest import suggest_tiles

        with writing(features):
            asked = suggest_tiles(out, taught, given, suggest, options.note, with_picture=not when_told)
        where = out.path / "suggested"
        sys.stderr.write(f"{len(asked)} tiles to ask about: {where} (give the squares a class in QuPath, and teach again)\n")
    sys.stderr.write(f"Model: {model}   (use it on other slides with: pathovit run SLIDES --model {model})\n")
    if as_json:
        typer.echo(json.dumps({"model": str(model), "taught": shown}, indent=1))
    if code > 3:
        leave(code)
    sys.exit(code)


def _wait_until_told() -> tuple[list[Path], str | None]:
    """Import all that teaching takes, then wait for a line of JSON: the `regions`, and the `positive` class."""
    import pathovit.run.redraw
    import pathovit.show.overview
    import pathovit.study.suggest  # noqa: F401

    line = sys.stdin.readline()
    if not line:  # whoever would have told is gone
        sys.exit(0)
    told = json.loads(line)
    return [Path(told["regions"])], told["positive"]


def _refuse_trained(model: Path, overwrite: bool) -> None:
    """A taught model is replaced whenever more was painted; one that was trained is not lost that way."""
    from pathovit.model.card import read_card

    if (model / "model.json").exists() and not overwrite and not read_card(model)[1].is_taught:
        raise SettingsError(
            f"{model}: there is a model here that was trained. Choose another --model, or replace it with --overwrite."
        )
