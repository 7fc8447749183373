"""What model.json must be, looked at before anything of it is used: models are passed from hand to hand, and edited."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pathovit.model.calibration import Calibration
from pathovit.model.own_kinds import NETWORKS, TAUGHT, kinds_of_ones_own
from pathovit.model.targets import KINDS, Target
from pathovit.settings import AggregatorConfig

SIZES = {"feature_dim": 65_536, "outputs": 4096, "width": 65_536, "depth": 64, "heads": 256}  # of a network, at most
LEAST_CLASSES = {"binary": 2, "multiclass": 2}
MOST_CLASSES = {"binary": 2}
MOST_BYTES = 64 * 2**20  # of a model.json


class Fault(ValueError):
    """What is wrong, in words that follow the file's name."""


def parsed(content: bytes) -> dict[str, Any]:
    """Raises Fault where that is no JSON object, or holds what JSON has no numbers for."""
    if len(content) > MOST_BYTES:
        raise Fault(f"{len(content):,} bytes are no model.json")
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Fault(f"damaged ({error})") from error
    if not isinstance(found, dict):
        raise Fault("it holds no JSON object")
    return found


def _no_number(name: str) -> float:
    raise Fault(f"it holds {name} where a number should be")


def require(values: Mapping[str, Any]) -> None:
    """Raises Fault where a value could not have been written by a training."""
    for part in ("config", "encoder", "target", "calibration"):
        if not isinstance(values[part], dict):
            raise Fault(f"its {part} holds no names")
    config = _config(values["config"])
    target = _target(values["target"])
    if target.outputs != config.outputs:
        raise Fault(f"{config.outputs} outputs do not fit a {target.task} target with the classes {', '.join(target.classes)}")
    _calibration(values["calibration"], target, config.kind == TAUGHT)
    _features(values["encoder"], config)
    digest = values["weights_sha256"]
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise Fault("its weights_sha256 is no digest")


def _config(found: Mapping[str, Any]) -> AggregatorConfig:
    if unknown := set(found) - {one.name for one in fields(AggregatorConfig)}:
        raise Fault(f"config.{sorted(unknown)[0]} is unknown")
    for name, most in SIZES.items():
        if name in found:
            _whole(f"config.{name}", found[name], most)
    for name in ("feature_dim", "outputs"):
        if name not in found:
            raise Fault(f"config.{name} is missing")
    config = AggregatorConfig(**found)
    if config.kind not in (*NETWORKS, *kinds_of_ones_own()):
        raise Fault(
            f"config.kind {config.kind!r} is unknown; expected one of {', '.join(NETWORKS)}, or what is registered here "
            "(pathovit.register_aggregator, or the package that brings it)"
        )
    if config.kind != TAUGHT and config.width % config.heads:
        raise Fault(f"config.width {config.width} is no multiple of its {config.heads} heads")
    return config


def _target(found: Mapping[str, Any]) -> Target:
    task = found.get("task")
    if not isinstance(task, str) or task not in KINDS:
        raise Fault(f"target.task {task!r} is unknown; expected one of {', '.join(KINDS)}")
    for name in ("columns", "classes"):
        words = found.get(name)
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words) or not words:
            raise Fault(f"target.{name} are no names")
        if len(set(words)) < len(words):
            raise Fault(f"target.{name} are not all different")
    count = len(found["classes"])
    if not LEAST_CLASSES.get(task, 1) <= count <= MOST_CLASSES.get(task, SIZES["outputs"]):
        raise Fault(f"a {task} target cannot have {count} class{'es' * (count != 1)}")
    return Target.from_json(found)


def _calibration(found: Mapping[str, Any], target: Target, is_taught: bool) -> None:
    if unknown := set(found) - {one.name for one in fields(Calibration)}:
        raise Fault(f"calibration.{sorted(unknown)[0]} is unknown")
    for name in ("temperature", "centre", "scale"):
        _numbers(f"calibration.{name}", [found.get(name, 1.0)])
    if not found.get("temperature", 1.0) > 0:
        raise Fault(f"calibration.temperature is {found['temperature']:g}, expected above 0")
    for name in ("shift", "hot", "hot_patients"):
        values = found.get(name)
        if not isinstance(values, list) or len(values) != target.outputs:
            raise Fault(f"calibration.{name} does not hold {target.outputs} numbers")
        _numbers(f"calibration.{name}", values)
    questions = found.get("conformity")
    if not isinstance(questions, list) or not all(isinstance(one, list) for one in questions):
        raise Fault("calibration.conformity is no list of lists")
    for question in questions:
        for option in question:
            if not isinstance(option, list):
                raise Fault("calibration.conformity is no list of lists")
            _numbers("calibration.conformity", option)
    if not is_taught and [len(options) for options in questions] != (wanted := target.kind.conforming()):
        raise Fault(f"calibration.conformity does not hold {wanted} lists of numbers, one for every option")


def _features(found: Mapping[str, Any], config: AggregatorConfig) -> None:
    for name in ("encoder", "weights_sha256"):
        if not isinstance(found.get(name), str):
            raise Fault(f"encoder.{name} is no text")
    for name in ("dim", "tile_px"):
        _whole(f"encoder.{name}", found.get(name), 65_536)
    _numbers("encoder.mpp", [found.get("mpp")])
    if not found["mpp"] > 0:
        raise Fault(f"encoder.mpp is {found['mpp']:g}, expected above 0")
    if found["dim"] != config.feature_dim:
        raise Fault(f"features of {found['dim']} numbers do not fit a network for {config.feature_dim}")


def _whole(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise Fault(f"{name} is {_short(value)}, expected a whole number from 1 to {most:,}")


def _numbers(name: str, values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise Fault(f"{name} holds {_short(value)}, expected a number")


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:37]}..."
