"""Encoders: a record of each, and one short function that makes any of them."""

from pathovit.encoders.build import make_model
from pathovit.encoders.encoder import Encoder, Pixels
from pathovit.encoders.load import load_encoder
from pathovit.encoders.names import known_record
from pathovit.encoders.own import write_encoder
from pathovit.encoders.pool import pool_tokens
from pathovit.encoders.record import HALF, IMAGENET_MEAN, IMAGENET_STD, EncoderRecord
from pathovit.encoders.records import RECORDS
from pathovit.encoders.wrap import own_encoder

__all__ = [
    "HALF", "IMAGENET_MEAN", "IMAGENET_STD", "RECORDS", "Encoder", "EncoderRecord", "Pixels", "known_record", "load_encoder", "make_model",
    "own_encoder", "pool_tokens", "write_encoder",
]  # fmt: skip
