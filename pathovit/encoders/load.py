"""A name and weights to an encoder on a device."""

from __future__ import annotations

import copy

from pathovit.encoders.adapt import load_strictly
from pathovit.encoders.build import make_model
from pathovit.encoders.cache import require_unchanged
from pathovit.encoders.encoder import Encoder
from pathovit.encoders.names import known_record
from pathovit.encoders.own import OF_PACKAGE, brought
from pathovit.encoders.spec import sides
from pathovit.encoders.weights import find_weights, read_safetensors
from pathovit.errors import SettingsError
from pathovit.files import file_sha256
from pathovit.machine import allowed_cores, pick_device, pick_precision
from pathovit.settings import EmbedSettings

RANDOM = "random"  # as weights: seeded noise, for benchmarks and tests


def load_encoder(
    name: str,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    tile_px: int | None = None,
    engine: str = "torch",
    cores: int | None = None,
) -> Encoder:
    """Build an encoder and load its weights. Never uses the network.

    Parameters
    ----------
    name : a name of the table (`pathovit encoders`), or any timm architecture; with variants, as in "uni:cls_mean:resample"
    weights : a .safetensors file; None for the bundled or the fetched one; "random" for seeded noise
    tile_px : tile side if not the encoder's own; what is done with such tiles is part of its record
    cores : that it may use, on a CPU; None for all that this process is allowed
    engine : "torch"; "openvino" is faster on most CPUs and needs `pip install "pathovit[openvino]"`

    Raises
    ------
    SettingsError : a device, precision or engine that cannot be had
    WeightsError : unknown name, no weights, or weights that do not fit

    Examples
    --------
    >>> pathovit.load_encoder("reference", precision="fp32").dim
    256
    """
    import torch

    EmbedSettings(precision=precision, engine=engine)  # refuses what there is not
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise SettingsError(f"--engine openvino computes on the CPU, and --device is {device}. Leave out one of the two.")
    record = known_record(name)
    side, model_px = sides(record, tile_px)
    of_package = brought(record.base) if weights is None and record.arch == OF_PACKAGE else None
    if of_package is not None:
        _, known, digest = of_package
        model = copy.deepcopy(known)  # of which another encoder may be made, on another device
    elif weights == RANDOM:
        with torch.random.fork_rng():  # the caller's own chance goes on as it was
            torch.manual_seed(0)
            model, digest = make_model(record, model_px), RANDOM
    else:
        path = find_weights(record, weights)
        digest = file_sha256(path) if path.is_file() else ""
        require_unchanged(record, path, digest)
        model = make_model(record, model_px)
        load_strictly(model, read_safetensors(path), path.name)
    model = model.eval().requires_grad_(False)
    if engine == "openvino":
        from pathovit.encoders.openvino_engine import compile_encoder

        plain = Encoder(record, model, torch.device("cpu"), "float32", side, model_px, digest, cores or allowed_cores())
        return compile_encoder(plain, precision)
    target = pick_device(device)
    dtype = pick_precision(precision, target, record.prefers_fp32)
    said = str(dtype).removeprefix("torch.")
    return Encoder(record, model.to(target, dtype), target, said, side, model_px, digest, cores or allowed_cores())
