"""Noise of one scale and of many."""

from __future__ import annotations

import math

import numpy as np
from scipy import fft

from .spec import Floats, Rng


def smooth_noise(shape: tuple[int, int], sigma_px: tuple[float, float], rng: Rng) -> Floats:
    """Noise (H, W) smoothed by sigma (row, column) in pixels; mean 0, sd 1, seamless where H and W are even."""
    rows, cols = (fft.next_fast_len(length, real=True) for length in shape)
    keep_row, keep_col = (
        np.exp(-2 * (math.pi * sigma * frequency) ** 2).astype(np.float32)
        for sigma, frequency in zip(sigma_px, (fft.fftfreq(rows), fft.rfftfreq(cols)), strict=True)
    )
    waves = fft.rfft2(rng.standard_normal((rows, cols), dtype=np.float32), workers=2)
    waves *= keep_row[:, None]
    waves *= keep_col[None]
    waves[0, 0] = 0
    noise = np.asarray(fft.irfft2(waves, (rows, cols), workers=2, overwrite_x=True)[: shape[0], : shape[1]])
    return np.asarray(noise / (noise.std() + np.float32(1e-9)))


def cloud_noise(shape: tuple[int, int], sigma_px: float, rng: Rng, octaves: int = 5, gain: float = 0.5) -> Floats:
    """Sum of ever finer noises (H, W), each `gain` times the one before; about sd 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        if sigma_px / 2**octave < 1:
            break
        total += gain**octave * smooth_noise(shape, (sigma_px / 2**octave,) * 2, rng)
    return total
