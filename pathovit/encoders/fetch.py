"""Weights from the hub into our own cache. The only module that uses the network."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from pathovit.encoders.cache import Origin, cache_folder, in_hub_cache, keep, origin_in, weights_in
from pathovit.encoders.record import EncoderRecord
from pathovit.encoders.weights import convert_weights, read_safetensors
from pathovit.errors import WeightsError
from pathovit.files import file_sha256, storage_errors

CONNECT_S = 5.0
CARRY = "On a machine that has a network: pathovit encoders fetch NAME --to FOLDER; then here: pathovit encoders fetch NAME --from FOLDER"
TOKEN = "log in with `hf auth login`, or set HF_TOKEN"


def fetch_weights(record: EncoderRecord) -> Path:
    """Weights of an encoder as safetensors in our cache; what is there already, and whole, is not fetched again.

    Raises
    ------
    WeightsError : it is on no hub, the hub does not give it, or it is no file of tensors
    StorageError : the cache cannot be written
    """
    folder, name = cache_folder(), record.base
    damaged = False
    try:
        if (here := origin_in(folder, name)) is not None:
            damaged = file_sha256(weights_in(folder, name)) != here.sha256
    except WeightsError:
        here, damaged = None, True
    if here is not None and not damaged:
        return weights_in(folder, name)
    if not record.hub:
        raise WeightsError(
            f"Encoder {name!r} is on no hub: there is nothing to fetch. It comes with a package, or from a file: --weights."
        )
    source = _download(record, damaged)
    try:
        _look_at(source)
    except WeightsError:
        if damaged:
            raise
        source = _download(record, True)  # what another program left there is not whole
        _look_at(source)
    digest = file_sha256(source)
    if record.sha256 and digest != record.sha256:
        raise WeightsError(
            f"{record.hub}: the SHA-256 of {source.name} is {digest[:12]}..., pinned is {record.sha256[:12]}.... It was changed there, or on the way."
        )
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-", ignore_cleanup_errors=True) as work:
            made = Path(work) / "weights.safetensors"
            if source.suffix == ".safetensors":
                _share(source.resolve(), made)
            else:
                convert_weights(source, made)
            revision = source.parent.name  # of the hub's cache: snapshots/COMMIT/FILE
            origin = Origin(name, record.hub, source.name, revision, digest, file_sha256(made), record.licence)
            return keep(folder, made, origin)


def _look_at(source: Path) -> None:
    """Raises WeightsError for safetensors that are damaged; of other files that is found when they are converted."""
    if source.suffix == ".safetensors":
        read_safetensors(source)


def _share(source: Path, target: Path) -> None:
    """The same bytes under another name: a second link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _download(record: EncoderRecord, afresh: bool) -> Path:
    """The first of a record's files that its repository has, in the hub's own cache; `afresh` where that may be damaged, too, for ours can be the same file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    revision = record.revision or None
    if not afresh and (here := in_hub_cache(record)) is not None:
        return here
    try:
        _require_hub(record)
    except WeightsError:
        if not afresh and (here := in_hub_cache(record, any_commit=True)) is not None:
            return here  # of another commit, which is written down beside it
        raise
    for file in record.files:
        try:
            return Path(hf_hub_download(record.hub, file, revision=revision, endpoint=_endpoint(), force_download=afresh))
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # of any library below it; each kind has its sentence
            cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
            raise WeightsError(f"{record.hub}: {_told(record, cause)}") from error
    raise WeightsError(
        f"{record.hub}: there is no {' and no '.join(record.files)} in it. Fetch its weights by hand, and give them with --weights."
    )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _require_hub(record: EncoderRecord) -> None:
    """Say at once that there is no network: the library below would try for minutes."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise WeightsError(f"{record.hub}: HF_HUB_OFFLINE is set, and it was not fetched before. {CARRY}")
    if urllib.request.getproxies():
        return  # which may lead to it
    found = urllib.parse.urlsplit(_endpoint() or constants.ENDPOINT)
    try:
        socket.create_connection(
            (found.hostname or "", found.port or (443 if found.scheme == "https" else 80)), CONNECT_S
        ).close()
    except OSError as error:
        raise WeightsError(f"{record.hub}: {found.hostname} cannot be reached ({error}). {CARRY}") from error


def _told(record: EncoderRecord, error: BaseException) -> str:
    """What a failure of the hub means, and what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{record.hub}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        if get_token() is None:
            return f"it asks for a login. Accept its licence ({record.licence}) at {page}, and {TOKEN}."
        return f"your login may not have it yet. Accept its licence ({record.licence}) at {page}; some are granted by hand, after days."
    if isinstance(error, RevisionNotFoundError):
        return f"its revision {record.revision[:12]}, which is pinned, is gone. Look at {page}."
    if isinstance(error, RepositoryNotFoundError):
        if status == 401 and get_token() is not None:
            return f"the hub does not take your token (401). Make a new one, and {TOKEN}."
        return f"there is no such repository, or it is not shown without a login ({status}). Look at {page}, and {TOKEN}."
    if status == 403:
        return f"the hub refuses it (403). Your token may lack the right to read gated repositories; look at {page}."
    if status == 429:
        return "the hub says that too much was asked of it (429). Try again in an hour, or log in."
    if isinstance(error, HfHubHTTPError) and status is not None and status >= 500:
        return f"the hub has a fault of its own ({status}). Try again later."
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return f"it cannot be written to {Path.home() if error.filename is None else error.filename} ({error.strerror}). Make room, or set HF_HOME to a larger drive."
    return f"the transfer broke off ({_first(error)}). Fetch it again."


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
