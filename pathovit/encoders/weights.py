"""Weights: safetensors only, known by their SHA-256. Pickled files are refused, for loading one can run its code."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathovit.encoders.cache import cache_folder, in_hub_cache, origin_in, weights_in
from pathovit.encoders.own import WEIGHTS, write_safetensors
from pathovit.encoders.record import EncoderRecord
from pathovit.errors import WeightsError
from pathovit.files import open_patiently
from pathovit.text import first_line

if TYPE_CHECKING:
    import torch

BUNDLED = Path(__file__).parent / "bundled"
PREFIXES = ("module.", "model.", "backbone.", "encoder.", "teacher.", "student.", "trunk.", "vit.")
NESTS = ("state_dict", "model", "teacher", "model_state_dict", "module", "encoder")


def require_safetensors(path: Path) -> None:
    """WeightsError for a file that is missing or of another format."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file. Check the path.")
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path.name}: only .safetensors weights are loaded, because other formats can run code. "
            f"Convert it with: pathovit encoders convert {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.safetensors')))}"
        )


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises
    ------
    WeightsError : missing, another format, damaged, or not finite
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_safetensors(path)
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name}: not a valid safetensors file ({error}). Fetch or convert it again.") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path.name}: tensor {name!r} holds NaN or infinite values. The file is damaged.")
    return tensors


def find_weights(record: EncoderRecord, given: str | None) -> Path:
    """The weights file of an encoder: the one given, the bundled one, the one that was fetched, or one in the hub's own cache.

    Never uses the network; `fetch_weights` does.
    """
    if given is not None:
        return Path(given)
    name = record.base
    if record.folder:
        return Path(record.folder) / WEIGHTS
    bundled = BUNDLED / f"{name}.safetensors"
    if bundled.is_file():
        return bundled
    if origin_in(cache_folder(), name) is not None:
        return weights_in(cache_folder(), name)
    remedy = "Give"
    if record.hub:
        found = in_hub_cache(record)
        if found is not None and found.suffix == ".safetensors":
            return found
        how = "Another program has fetched them; take them over (no network is used)" if found else "Fetch them once"
        remedy = f"{how} with: pathovit encoders fetch {name}, or give"
    raise WeightsError(f"Encoder {name!r} has no weights on this machine. {remedy} a file with --weights FILE.safetensors.")


def convert_weights(source: Path, target: Path) -> int:
    """Turn a foreign .pt/.pth/.bin file into safetensors; returns the number of tensors.

    Only tensors are unpickled (`weights_only=True`); a file that needs more is refused, not run.
    """
    import torch

    if not source.is_file():
        raise WeightsError(f"{source}: there is no such file. Check the path.")
    if target.suffix != ".safetensors":
        raise WeightsError(
            f"{target}: what is written is safetensors, and has to be called so. Use {target.with_suffix('.safetensors').name}."
        )
    try:
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with open_patiently(source) as file:
            head = file.read(2)
        if head != b"PK" and head[:1] != b"\x80":
            raise WeightsError(
                f"{source.name}: it is no file of tensors (it begins with {head!r}): a page or a pointer to it, perhaps. Download it again."
            ) from error
        raise WeightsError(
            f"{source.name}: it holds more than tensors and is refused, because loading it could run its code."
        ) from error
    except MemoryError as error:
        raise WeightsError(f"{source.name}: there is not enough memory to read it. Convert it on a larger machine.") from error
    except Exception as error:  # a hostile pickle, and a torn one, may raise anything; it is refused whatever it raises
        raise WeightsError(
            f"{source.name}: it cannot be read as tensors ({first_line(error)}): damaged, or of another kind. Download it again."
        ) from error
    tensors = _strip(_of_backbone(_find_tensors(content)))
    if not tensors:
        raise WeightsError(f"{source.name}: no tensors found in it.")
    write_safetensors(target, tensors)
    return len(tensors)


def _find_tensors(content: Any) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint, wherever training code of the field nests it."""
    import torch

    if not isinstance(content, dict):
        return {}
    for nest in NESTS:
        if isinstance(content.get(nest), dict):
            return _find_tensors(content[nest])
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _of_backbone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what was trained beside it: heads of DINO, the decoder of MAE."""
    own = {name: tensor for name, tensor in tensors.items() if name.removeprefix("module.").startswith("backbone.")}
    return own or {name: tensor for name, tensor in tensors.items() if not name.removeprefix("module.").startswith("decoder_")}


def _strip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop prefixes that every name shares, such as "module.backbone."."""
    for prefix in PREFIXES * 2:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
