"""Certificates of a cluster that runs on several machines: who holds them may speak with it, and nobody else."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from pathovit.errors import SettingsError
from pathovit.files import read_bytes, storage_errors
from pathovit.settings import RunSettings

CERTIFICATE, KEY = "cert.pem", "key.pem"
ROLES = ("SCHEDULER", "WORKER", "CLIENT")


def make_certificates(folder: Path) -> dict[str, str]:
    """A certificate and its key in a folder of their own, for this user alone; and the variables by which Dask's commands take them.

    Raises
    ------
    SettingsError : there are some already
    StorageError : the folder cannot be written
    """
    from distributed.security import Security

    made = Security.temporary()
    with storage_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        for name, content in ((CERTIFICATE, made.tls_ca_file), (KEY, made.tls_scheduler_key)):
            try:
                handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            except FileExistsError:
                raise SettingsError(f"{folder / name} is there already. Remove it, or choose another folder.") from None
            with os.fdopen(handle, "w") as file:
                file.write(content)
    return variables(folder)


def variables(folder: Path) -> dict[str, str]:
    """Of the environment, for `dask scheduler`, `dask worker` and pathovit: TLS alone, and no web pages."""
    whole = folder.resolve()
    found = {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": "tls",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(whole / CERTIFICATE),
        "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": "[]",
        "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    }
    for role in ROLES:
        found[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(whole / CERTIFICATE)
        found[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(whole / KEY)
    return found


def as_shell(found: dict[str, str]) -> str:
    """For `eval "$(pathovit certificates FOLDER)"`."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in found.items())


def security_of(folder: str | None) -> Any | None:
    """What a client shows a scheduler; None: what Dask's own settings say."""
    if folder is None:
        return None
    from distributed.security import Security

    cert, key = (str(Path(folder) / name) for name in (CERTIFICATE, KEY))
    if not os.access(key, os.R_OK):
        raise SettingsError(
            f"--certificates {folder}: there is no {KEY} that can be read. Make some with: pathovit certificates {folder}"
        )
    return Security(require_encryption=True, tls_ca_file=cert, tls_client_cert=cert, tls_client_key=key)


def refuse_plain(run: RunSettings) -> None:
    """Raises SettingsError where a scheduler speaks without encryption: whoever reaches it runs what they like, as this user."""
    address = run.scheduler or _address_in(Path(str(run.scheduler_file)))
    if run.plain_tcp or address is None:
        return
    scheme = address.partition("://")[0] if "://" in address else _default_scheme()
    if scheme != "tls":
        raise SettingsError(
            f"The scheduler at {address} speaks {scheme}, without encryption: whoever reaches it can run what they like, as you. Start it with "
            "certificates (pathovit certificates FOLDER; workflows/slurm/cluster.sbatch does), or take that on with --plain-tcp."
        )


def _address_in(file: Path) -> str | None:
    """Of a scheduler file; None where it is not there yet, or is none: Dask waits for it, or says so."""
    try:
        return str(json.loads(read_bytes(file))["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _default_scheme() -> str:
    import dask
    import distributed  # noqa: F401  # brings its defaults

    return str(dask.config.get("distributed.comm.default-scheme"))
