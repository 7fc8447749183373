"""Who reads: named accounts with tokens, and which slides are whose.

review/readers.json holds names, roles and digests of tokens; a token itself is shown once, when it is made.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from pathovit.errors import SettingsError
from pathovit.files import read_bytes, to_json, write_atomically
from pathovit.text import plain

READER, ADJUDICATOR = "reader", "adjudicator"
ROLES = (READER, ADJUDICATOR)
ASSIGNMENTS = ("all", "split", "split-20")
READ_TWICE = 0.2  # of the slides, with "split-20"
MOST_NAME = 80


@dataclass(frozen=True)
class Reader:
    """A person."""

    name: str
    role: str = READER
    token_sha256: str = ""

    @property
    def may_settle(self) -> bool:
        return self.role == ADJUDICATOR


@dataclass(frozen=True)
class Readers:
    """All accounts of a folder; none means one person, at this computer."""

    people: tuple[Reader, ...] = ()
    assignment: str = "all"

    @classmethod
    def load(cls, folder: Path) -> Readers:
        """From review/. Raises SettingsError where the file is damaged."""
        path = folder / "readers.json"
        try:
            found = json.loads(read_bytes(path))
            people = tuple(Reader(str(one["name"]), str(one["role"]), str(one["token_sha256"])) for one in found["readers"])
            return cls(people, str(found["assignment"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{path}: damaged ({error!r}). Remove it, and add the readers again.") from error

    def save(self, folder: Path) -> None:
        people = [{"name": one.name, "role": one.role, "token_sha256": one.token_sha256} for one in self.people]
        write_atomically(folder / "readers.json", to_json({"readers": people, "assignment": self.assignment}))

    def added(self, name: str, role: str | None = None) -> tuple[Readers, str]:
        """With one more reader, or a new token for one; and the token.

        Parameters
        ----------
        role : None for the one that they have, or reader

        Raises
        ------
        SettingsError : a role that there is not, a name that is empty or too long
        """
        name = plain(name).strip()
        known = next((one for one in self.people if one.name.casefold() == name.casefold()), None)
        role = role or (known.role if known else READER)
        if role not in ROLES:
            raise SettingsError(f"--role {role!r} is unknown. Use {' or '.join(ROLES)}.")
        if not 0 < len(name) <= MOST_NAME:
            raise SettingsError(f"A reader's name has 1 to {MOST_NAME} letters.")
        token = secrets.token_urlsafe(24)
        name = known.name if known else name  # what was decided is known by it
        others = [one for one in self.people if one is not known]
        return Readers((*others, Reader(name, role, digest_of(token))), self.assignment), token

    def without(self, name: str) -> Readers:
        if name not in [one.name for one in self.people]:
            raise SettingsError(f"There is no reader {name!r}; there are {', '.join(one.name for one in self.people) or 'none'}.")
        return Readers(tuple(one for one in self.people if one.name != name), self.assignment)

    def assigned(self, assignment: str) -> Readers:
        if assignment not in ASSIGNMENTS:
            raise SettingsError(f"--assign {assignment!r} is unknown. Use {', '.join(ASSIGNMENTS)}.")
        return Readers(self.people, assignment)

    def by_token(self, token: str) -> Reader | None:
        wanted = digest_of(token)
        return next((one for one in self.people if hmac.compare_digest(one.token_sha256, wanted)), None)

    def by_name(self, name: str) -> Reader | None:
        return next((one for one in self.people if one.name == name), None)

    def readers_of(self, unit: str) -> tuple[str, ...]:
        """Who is to read a patient, or a slide without one; the same whatever others there are. Empty means everybody.

        Each reader draws a number for the unit, and the highest reads it: another reader takes over their share, and no more changes.
        """
        names = [one.name for one in self.people if one.role == READER]
        if self.assignment == "all" or len(names) < 2:
            return ()
        drawn = sorted(names, key=lambda name: hashlib.sha256(f"{name}\0{unit}".encode()).digest(), reverse=True)
        twice = int(hashlib.sha256(unit.encode()).hexdigest()[:8], 16) / 2**32 < READ_TWICE
        return tuple(drawn[:2] if self.assignment == "split-20" and twice else drawn[:1])


def at_this_computer(name: str | None = None) -> Reader:
    """The one person who reads where there are no accounts: both reads and settles."""
    try:
        return Reader(plain(name or getpass.getuser()).strip() or "reader", ADJUDICATOR)
    except (KeyError, OSError):  # no such user, as in some containers
        return Reader("reader", ADJUDICATOR)


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
