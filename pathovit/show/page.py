"""Pages that open from disk: templates that share their looks, filled in. What comes from outside is text there, whatever it holds."""

from __future__ import annotations

from pathovit import RESEARCH_USE, __version__
from pathovit.text import plain, say_left_out, say_mm2


def filled(template: str, **known: object) -> bytes:
    """A template of show/templates/, in UTF-8; it knows the version and what the page is for, too."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("pathovit.show"), autoescape=True, undefined=StrictUndefined)
    environment.filters["plain"] = plain
    environment.filters["left_out"] = say_left_out
    environment.filters["mm2"] = say_mm2
    page = environment.get_template(template).render(research_use=RESEARCH_USE, version=__version__, **known)
    return page.encode("utf-8", "replace")
