"""Masks of pixels, bool (H, W): grown, opened, taken apart. Distances in pixels, from centre to centre."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def grown(mask: Mask, radius_px: float) -> Mask:
    """Everything within a distance of the mask, from centre to centre."""
    reach = np.arange(-int(radius_px), int(radius_px) + 1)
    disc = reach[:, None] ** 2 + reach**2 <= radius_px**2
    return cv2.dilate(mask.view(np.uint8), disc.astype(np.uint8)).view(bool)


def opened(mask: Mask, radius_px: float) -> Mask:
    return grown(~grown(~mask, radius_px), radius_px) & mask


def components(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Labels (H, W), 0 beside the mask, and of each label its left, top, width, height and area: (labels, 5)."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    return np.asarray(labels, np.int32), np.asarray(boxes, np.int32)


def without_small(mask: Mask, area_px: float) -> Mask:
    labels, boxes = components(mask)
    large = boxes[:, 4] > max(1, int(area_px))
    large[0] = False
    return np.asarray(large[labels])


def within(mask: Mask, radius_px: float) -> Mask:
    """Everything within a distance of the mask; for distances that are large in pixels."""
    return np.asarray(cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 5) <= radius_px)
