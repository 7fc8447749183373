"""pathovit review: the page on which a pathologist reads, decides and corrects; and what is done with what they said."""

from __future__ import annotations

import secrets
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.text import counted

if TYPE_CHECKING:
    from pathovit.review.desk import Desk
    from pathovit.review.readers import Reader

LOOPBACK, ANY = ("127.0.0.1", "localhost", "::1"), ("0.0.0.0", "::")


class _OrAFolder(TyperGroup):
    """`pathovit review OUT` is the page; another word after `review` is a command of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:
            args = ["page", *args]
        return super().parse_args(ctx, args)


review = typer.Typer(cls=_OrAFolder, no_args_is_help=True, help="A page to go through a folder: read, decide, correct, teach.")
app.add_typer(review, name="review")


@dataclass(frozen=True)
class Address:
    """Where the page is served, and who may come."""

    listen: str
    port: int
    names: tuple[str, ...]
    certificate: tuple[Path, Path] | None
    user_header: str

    def require_safe(self, behind_proxy: bool) -> None:
        """Raises SettingsError for an address on which others could listen in."""
        if self.listen not in LOOPBACK and not self.certificate:
            raise SettingsError(
                f"--listen {self.listen}: others could listen in. Give --tls-certificate and --tls-key, or leave it at this computer and put a "
                "proxy that speaks TLS before it (--behind-proxy)."
            )
        if self.listen in ANY and not self.names:
            raise SettingsError(f"--listen {self.listen}: say under which name others reach it, with --host NAME.")
        if behind_proxy != bool(self.user_header):
            raise SettingsError("--behind-proxy and --user-header NAME go together: the proxy says in that header who asks.")
        if behind_proxy and self.listen not in LOOPBACK:
            raise SettingsError("--behind-proxy: anybody who reaches --listen could say who they are. Leave it at this computer.")


@review.command("page", hidden=True)
def page(
    out: Annotated[Path, typer.Argument(help="Folder that `pathovit run` wrote.")],
    slides: Annotated[list[Path] | None, typer.Option("--slides", help="Where slides lie now, if not where they were.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the answer at once, without a first impression.")] = False,
    reader: Annotated[str | None, typer.Option("--reader", help="Who reads.  \\[default: the name of your account here]")] = None,
    port: Annotated[int, typer.Option("--port", help="0 for any that is free.")] = 8760,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    import_: Annotated[
        list[Path] | None, typer.Option("--import", help="Regions drawn in QuPath (GeoJSON) become painted tiles; no page.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write what slides were decided to be, as `pathovit train` reads it; no page.")
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option("--regions", help="Write painted tiles into this folder, as `train` and `teach` read them; no page."),
    ] = None,
    static: Annotated[
        Path | None,
        typer.Option("--static", help="Write a folder to look at without a server, and say how large it is; no page."),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="Address to listen on; others than this computer's own need TLS.")
    ] = "127.0.0.1",
    host: Annotated[list[str] | None, typer.Option("--host", help="Name under which others reach it.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option("--tls-certificate", help="PEM file, with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy on this computer speaks TLS and knows who asks.")
    ] = False,
    user_header: Annotated[str, typer.Option("--user-header", help="Header in which that proxy puts the reader's name.")] = "",
) -> None:
    """Open a page to go through a folder: which slides first, where to look and why; agree, disagree, correct, teach.

    Everything that is decided is kept in a record that shows if it was changed (`pathovit audit verify OUT`). Several readers get an account
    each: pathovit review users OUT --add NAME
    """
    from pathovit.outputs.folder import OutFolder
    from pathovit.review.desk import Desk
    from pathovit.review.readers import at_this_computer

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    if not out.is_dir():
        raise SettingsError(f"{out}: there is no such folder. Give one that `pathovit run` wrote.")
    if bool(tls_certificate) != bool(tls_key):
        raise SettingsError("--tls-certificate and --tls-key go together.")
    who, elsewhere = at_this_computer(reader), tuple(slides or ())
    if import_ or export or regions or static:
        _write_files(Desk(OutFolder(out), elsewhere), who, import_ or [], export, regions, static)
        return
    certificate = (tls_certificate, tls_key) if tls_certificate and tls_key else None
    address = Address(listen, port, tuple(host or ()), certificate, user_header)
    address.require_safe(behind_proxy)
    _serve(OutFolder(out).path, elsewhere, who, not open_, address, browser)


def _write_files(
    desk: Desk, who: Reader, import_: list[Path], export: Path | None, regions: Path | None, static: Path | None
) -> None:
    from pathovit.review.corrections import import_regions, write_labels, write_regions

    if import_:
        slides = import_regions(desk, import_, who, options.note)
        sys.stderr.write(f"Regions of {counted(slides, 'slide')} are painted tiles of {who.name} now.\n")
    if export:
        labels, unsure, disagreed = write_labels(desk, export)
        left = ", ".join(
            filter(None, [f"{unsure} unsure" if unsure else "", f"{disagreed} on which readers disagree" if disagreed else ""])
        )
        sys.stderr.write(f"{counted(labels, 'label')} written to {export}{f' (left out: {left})' if left else ''}.\n")
        desk.record.append("", who.name, who.role, {"event": "exported", "labels": labels})
    if regions:
        painted, tiles, differ = write_regions(desk, regions)
        more = f" ({differ} tiles on which readers disagree are left out)" if differ else ""
        desk.record.append("", who.name, who.role, {"event": "exported", "painted_tiles": tiles, "slides": painted})
        sys.stderr.write(f"{counted(tiles, 'painted tile')} of {counted(painted, 'slide')} written to {regions}{more}.\n")
    if static:
        from pathovit.review.static import write_static

        write_static(desk, static, options.note)
        sys.stderr.write(f"Written: {static / 'index.html'}\n")


def _serve(out: Path, elsewhere: tuple[Path, ...], who: Reader, blind: bool, address: Address, browser: bool) -> None:
    from pathovit.machine import quiet_libraries
    from pathovit.outputs.folder import OutFolder
    from pathovit.review.readers import Readers
    from pathovit.review.server import BUILT, serve
    from pathovit.review.service import ReviewSettings, open_review

    quiet_libraries()
    if not (BUILT / "review.js").is_file():
        raise SettingsError(
            "The page was not built when pathovit was installed: the npm registry was out of reach. In a checkout: make page"
        )
    port = address.port or _free_port(address.listen)
    token = secrets.token_urlsafe(24)
    local = (
        "127.0.0.1",
        "localhost",
        "[::1]",
        *address.names,
        *([] if address.listen in (*LOOPBACK, *ANY) else [_in_address(address.listen)]),
    )
    hosts = (*address.names, *(f"{name}:{port}" for name in local))
    settings = ReviewSettings(who, token, hosts, blind, address.user_header, bool(address.certificate))
    opened = open_review(OutFolder(out), settings, elsewhere)
    slides, people = len(opened.desk.cases()), Readers.load(opened.desk.record.folder).people
    shown = address.names[0] if address.names else _in_address(address.listen)
    alone = not people and not address.user_header
    url = f"{'https' if address.certificate else 'http'}://{shown}:{port}/"

    def started() -> None:
        sys.stderr.write(f"{counted(slides, 'slide')}. Open {url}{f'#token={token}' if alone else ''}\n")
        if people:
            sys.stderr.write(f"{counted(len(people), 'reader')}: each enters with a token of their own.\n")
        if address.user_header:
            sys.stderr.write("Whoever has an account on this computer can say who they are: let nobody but the proxy in.\n")
        sys.stderr.write("Stop with Ctrl+C; everything that was decided is kept.\n")
        sys.stderr.flush()
        if browser and sys.stderr.isatty():
            webbrowser.open(f"{url}#token={opened.sessions.ticket()}" if alone else url)  # its arguments can be seen by others

    serve(opened, address.listen, port, started, address.certificate)


def _in_address(listen: str) -> str:
    return f"[{listen}]" if ":" in listen else listen


def _free_port(listen: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.bind((listen, 0))
        return int(probe.getsockname()[1])


@review.command()
def users(
    out: Annotated[Path, typer.Argument(help="Folder that `pathovit run` wrote.")],
    add: Annotated[
        list[str] | None, typer.Option("--add", help="Name of a reader; a token is shown, once. Again: a new token.")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option("--role", help="reader, or adjudicator: sees all, settles, teaches.  \\[default: reader, or as before]"),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Name of a reader who may not enter any more.")] = None,
    assign: Annotated[
        str | None, typer.Option("--assign", help="all, split, or split-20: split, and 20 % are read by two.")
    ] = None,
) -> None:
    """Who reads a folder, which slides, and how far they agree."""
    from pathovit.outputs.folder import OutFolder
    from pathovit.review.agreement import agreements
    from pathovit.review.desk import Desk
    from pathovit.review.readers import at_this_computer

    if not out.is_dir():
        raise SettingsError(f"{out}: there is no such folder. Give one that `pathovit run` wrote.")
    if role is not None and not add:
        raise SettingsError("--role goes with --add NAME.")
    desk = Desk(OutFolder(out))
    readers, who = desk.readers(), at_this_computer()
    shown: dict[str, str] = {}
    for name in remove or ():
        readers = readers.without(name)
    for name in add or ():
        readers, token = readers.added(name, role)
        shown[readers.people[-1].name] = token
    if assign:
        readers = readers.assigned(assign)
    if add or remove or assign:
        readers.save(desk.record.folder)
        people = [{"name": one.name, "role": one.role} for one in readers.people]
        desk.record.append("", who.name, who.role, {"event": "readers", "readers": people, "assignment": readers.assignment})
    for person in readers.people:
        typer.echo(f"{person.name}\t{person.role}\t{shown.get(person.name, '')}".rstrip())
    sys.stderr.write(f"{counted(len(readers.people), 'reader')}; slides: {readers.assignment}.\n")
    if shown:
        sys.stderr.write("Tokens are not shown again: give each to its reader, and to nobody else.\n")
    for found in agreements(desk):
        between = f" ({found.interval[0]:.2f} to {found.interval[1]:.2f})" if found.interval else ""
        kappa = f"kappa {found.kappa:.2f}{between}" if found.kappa is not None else "kappa is not defined"
        sys.stderr.write(f"{' and '.join(found.readers)}: {found.agreed} of {counted(found.slides, 'slide')} alike, {kappa}\n")
