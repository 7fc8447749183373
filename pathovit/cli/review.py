"""pathovit review: the page on which a pathologist reads, decides and corrects; and what is done with what they said."""

from __future__ import annotations

import secrets
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.text import counted

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@app.command()
def review(
    out: Annotated[Path, typer.Argument(help="Folder that `pathovit run` wrote.")],
    slides: Annotated[list[Path] | None, typer.Option("--slides", help="Where slides lie now, if not where they were.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the answer at once, without a first impression.")] = False,
    reader: Annotated[str | None, typer.Option("--reader", help="Who reads.  \\[default: the name of your account here]")] = None,
    port: Annotated[int, typer.Option("--port", help="0 for any that is free.")] = 8760,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    import_: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Regions drawn in QuPath (GeoJSON): they become painted tiles, and that is all."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write what slides were decided to be, as `pathovit train` reads it, and that is all."),
    ] = None,
    regions: Annotated[
        Path | None, typer.Option("--regions", help="Write painted tiles as GeoJSON into this folder, and that is all.")
    ] = None,
    static: Annotated[
        Path | None, typer.Option("--static", help="Write a page to look at without a server, and that is all.")
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="Address to listen on. Others than this computer's own need TLS or a proxy.")
    ] = "127.0.0.1",
    host: Annotated[list[str] | None, typer.Option("--host", help="Name under which others reach it.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option("--tls-certificate")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy on this computer speaks TLS and knows who asks.")
    ] = False,
    user_header: Annotated[str, typer.Option("--user-header", help="Header in which the proxy puts the reader's name.")] = "",
) -> None:
    """Open a page to go through a folder: which slides first, where to look and why; agree, disagree, correct, teach.

    Everything that is decided is kept in a record that shows if it was changed (`pathovit audit verify OUT`).
    """
    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    from pathovit.outputs.folder import OutFolder

    folder = OutFolder(out)
    if not out.is_dir():
        raise SettingsError(f"{out}: there is no such folder. Give one that `pathovit run` wrote.")
    if import_ or export or regions or static:
        _files(folder, tuple(slides or ()), reader, import_ or [], export, regions, static)
        return
    _require_safe(listen, tls_certificate, tls_key, behind_proxy, user_header)
    _serve(
        folder,
        tuple(slides or ()),
        reader,
        not open_,
        listen,
        port,
        tuple(host or ()),
        tls_certificate,
        tls_key,
        user_header,
        browser,
    )


def _files(folder, elsewhere, reader, import_, export, regions, static) -> None:  # type: ignore[no-untyped-def]
    from pathovit.review.corrections import import_regions, write_labels, write_regions
    from pathovit.review.desk import Desk
    from pathovit.review.readers import at_this_computer

    desk = Desk(folder, elsewhere)
    who = at_this_computer(reader)
    if import_:
        slides = import_regions(desk, import_, who, options.note)
        sys.stderr.write(f"Regions of {counted(slides, 'slide')} are painted tiles of {who.name} now.\n")
    if export:
        labels, unsure, disagreed = write_labels(desk, export)
        said = [f"{unsure} unsure" if unsure else "", f"{disagreed} on which readers disagree" if disagreed else ""]
        left = ", ".join(filter(None, said))
        sys.stderr.write(f"{counted(labels, 'label')} written to {export}{f' ({left}: left out)' if left else ''}.\n")
        desk.record.append("", who.name, who.role, {"event": "exported", "labels": labels, "to": export.name})
    if regions:
        painted, tiles, differ = write_regions(desk, regions)
        more = f" ({differ} tiles on which readers disagree are left out)" if differ else ""
        sys.stderr.write(f"{counted(tiles, 'painted tile')} of {counted(painted, 'slide')} written to {regions}{more}.\n")
    if static:
        raise SettingsError("--static is not there yet.")


def _require_safe(listen: str, certificate: Path | None, key: Path | None, behind_proxy: bool, user_header: str) -> None:
    if bool(certificate) != bool(key):
        raise SettingsError("--tls-certificate and --tls-key go together.")
    if listen not in LOOPBACK and not certificate:
        raise SettingsError(
            f"--listen {listen}: others could listen in. Give --tls-certificate and --tls-key, or put a proxy that speaks TLS before it (--behind-proxy)."
        )
    if behind_proxy != bool(user_header):
        raise SettingsError("--behind-proxy and --user-header NAME go together: the proxy says in that header who asks.")


def _serve(folder, elsewhere, reader, blind, listen, port, names, certificate, key, user_header, browser) -> None:  # type: ignore[no-untyped-def]
    from pathovit.machine import quiet_libraries
    from pathovit.review.readers import Readers, at_this_computer
    from pathovit.review.server import BUILT, serve
    from pathovit.review.service import ReviewSettings, open_review

    quiet_libraries()
    if not (BUILT / "review.js").is_file():
        raise SettingsError(
            "The page was not built when pathovit was installed (it needs the npm registry once). In a checkout: make page"
        )
    port = port or _free_port(listen)
    token = secrets.token_urlsafe(24)
    hosts = [*(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")), *names, *(f"{name}:{port}" for name in names)]
    settings = ReviewSettings(at_this_computer(reader), token, tuple(hosts), blind, user_header, bool(certificate))
    opened = open_review(folder, settings, elsewhere)
    found = opened.desk.cases()
    accounts = Readers.load(opened.desk.record.folder).people
    scheme, shown = ("https" if certificate else "http"), (names[0] if names else "127.0.0.1" if listen in LOOPBACK else listen)
    url = f"{scheme}://{shown}:{port}/" + ("" if accounts or user_header else f"#token={token}")

    def started() -> None:
        sys.stderr.write(f"{counted(len(found), 'slide')}. Open {url}\n")
        if accounts:
            sys.stderr.write(f"Each of {counted(len(accounts), 'reader')} enters with their own token.\n")
        sys.stderr.write("Stop with Ctrl+C; everything that was decided is kept.\n")
        sys.stderr.flush()
        if browser and sys.stderr.isatty():
            webbrowser.open(url)

    serve(opened, listen, port, started, (certificate, key) if certificate and key else None)


def _free_port(listen: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((listen, 0))
        return int(probe.getsockname()[1])
