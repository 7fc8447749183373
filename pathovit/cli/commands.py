"""Imports every command, which registers it."""

from pathovit.cli import (  # noqa: F401
    audit,
    bench,
    certificates,
    encoders,
    explain,
    export,
    info,
    maintenance,
    names,
    predict,
    pretrain,
    probe,
    review,
    robustness,
    run,
    teach,
    tissue,
    train,
    verify,
)
