"""Encoders: a record of each, and one short function that makes any of them."""

from pathovit.encoders.encoder import Encoder, Pixels, pool_tokens
from pathovit.encoders.load import find_record, load_encoder, make_model
from pathovit.encoders.records import HALF, IMAGENET_MEAN, IMAGENET_STD, RECORDS, EncoderRecord

__all__ = [
    "HALF", "IMAGENET_MEAN", "IMAGENET_STD", "RECORDS", "Encoder", "EncoderRecord", "Pixels", "find_record", "load_encoder", "make_model",
    "pool_tokens",
]  # fmt: skip
