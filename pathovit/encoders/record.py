"""What is said of an encoder: what timm must build, and how its weights were trained to see tiles."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from pathovit.errors import WeightsError

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
HALF: Colour = (0.5, 0.5, 0.5)

POOLS_OF_TOKENS = ("cls", "mean", "cls_mean")
POOLS = ("head", *POOLS_OF_TOKENS, "direct")
INPUTS = ("native", "crop", "resample")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
OF_TOKENS = re.compile(r"(vit|deit|deit3|beit|eva02|eva)_")  # architectures of timm that have a CLS token and patch tokens
MPP_TOLERANCE = 0.1  # share by which a resolution may differ from one that weights were trained at


@dataclass(frozen=True)
class EncoderRecord:
    """One encoder. `arch` and `args` go to timm; the rest says what its weights expect.

    Raises
    ------
    WeightsError : a record that contradicts itself

    Examples
    --------
    >>> record = pathovit.load_encoder("reference").record
    >>> record.dim, record.mpp, record.tile_px
    (256, 1.0, 96)
    """

    name: str
    arch: str
    dim: int  # of the feature vector
    millions: float  # parameters
    licence: str
    hub: str  # repository on the model hub; "" for bundled or user's weights
    args: dict[str, Any] = field(default_factory=dict)
    tile_px: int = 224  # what the model sees, and the tiles that are cut unless others are asked for
    mpp: float = 0.5  # um per pixel of these tiles
    mpps: tuple[float, ...] = ()  # all that it was trained at, where there are several
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    pool: str = "head"  # head: timm's own; cls, mean: of patch tokens, cls_mean: both, concatenated; direct: the model's output
    input: str = "native"  # tiles of another size: native: resized to tile_px; crop: their centre; resample: seen as they are
    multiple_px: int = 16  # sides that the model can see as they are
    files: tuple[str, ...] = HUB_FILES  # in the repository, the first that is there
    revision: str = ""  # of the repository, where it is pinned
    sha256: str | None = None  # of that file, where it is pinned
    gated: bool = False  # the hub asks for a licence to be accepted
    prefers_fp32: bool = False  # bf16 is slower for it on CPUs
    feature_dtype: str = "float16"  # that they are stored in; float32 where they are too large for that
    scaled_decoding: bool = True  # its features hardly change if a JPEG is decoded at half its size rather than averaged
    note: str = ""
    folder: str = ""  # where it lies, if it is one's own

    def __post_init__(self) -> None:
        wrong = [
            said
            for said, holds in (
                (f"pool is {self.pool!r}, expected one of {', '.join(POOLS)}", self.pool in POOLS),
                (f"input is {self.input!r}, expected one of {', '.join(INPUTS)}", self.input in INPUTS),
                (f"dim is {self.dim}, expected above 0", self.dim > 0),
                (f"tile_px is {self.tile_px}, expected above 0", self.tile_px > 0),
                (f"mpp is {self.mpp:g}, expected above 0", self.mpp > 0),
                (f"mpp {self.mpp:g} is none of mpps", not self.mpps or self.mpp in self.mpps),
                ("mean is no colour of 0 to 1", all(0 <= value <= 1 for value in self.mean)),
                ("std is no colour above 0 and up to 1", all(0 < value <= 1 for value in self.std)),
                (f"tile_px {self.tile_px} is no multiple of {self.multiple_px}", self.tile_px % self.multiple_px == 0),
                (f"dim {self.dim} is odd, and pool is cls_mean", self.pool != "cls_mean" or self.dim % 2 == 0),
                ("it is gated, and on no hub", bool(self.hub) or not self.gated),
            )
            if not holds
        ]
        if wrong:
            raise WeightsError(f"Encoder {self.name!r}: {'; '.join(wrong)}.")

    @property
    def base(self) -> str:
        """Its name without what makes it a variant: all variants share their weights."""
        return parted(self.name)[0]

    @property
    def has_tokens(self) -> bool:
        """Whether tokens can be pooled in more than one way."""
        return self.pool != "direct" and OF_TOKENS.match(self.arch) is not None

    def variant(self, words: str) -> EncoderRecord:
        """Another way to use it, called NAME:WORD or NAME:WORD:WORD: cls, mean or cls_mean pool its tokens; native, crop or
        resample say what is done with tiles of another size.

        Raises
        ------
        WeightsError : there is no such way, or its architecture does not have it
        """
        asked = sorted(words.split(":"), key=lambda word: word in INPUTS)  # one way of use has one name
        if sum(word in INPUTS for word in asked) > 1 or sum(word in POOLS_OF_TOKENS for word in asked) > 1:
            raise WeightsError(f"Encoder {self.name!r}: {words!r} says two things of one kind. Leave one out.")
        found = replace(self, name=":".join([self.name, *asked]))
        for word in asked:
            if word in POOLS_OF_TOKENS:
                if not self.has_tokens:
                    raise WeightsError(f"Encoder {self.name!r}: {self.arch} has no CLS token and patch tokens to choose from.")
                width = self.dim // 2 if self.pool == "cls_mean" else self.dim
                found = replace(found, pool=word, dim=2 * width if word == "cls_mean" else width)
            elif word in INPUTS:
                found = replace(found, input=word)
            else:
                raise WeightsError(
                    f"Encoder {self.name!r}: there is no {word!r} of it, only {', '.join(POOLS_OF_TOKENS + INPUTS)}."
                )
        return found

    def fits(self, mpp: float) -> bool:
        """Whether weights were trained at a resolution near this one."""
        return any(abs(mpp - known) <= MPP_TOLERANCE * known for known in self.mpps or (self.mpp,))


def parted(name: str) -> tuple[str, str]:
    """A name, and the words of its variant: "uni:cls_mean" is uni, and cls_mean."""
    home, separator, last = name.rpartition("/")
    base, _, words = last.partition(":")
    return home + separator + base, words
