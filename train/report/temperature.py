"""Temperature scaling: one number that makes the probabilities of a head as good as they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache.calibration import Calibration
from train.data import batches
from train.data.batches import Images
from train.report.evaluate import evaluate
from train.solvers.head import Head

LIMIT = 1000.0  # temperatures from 1 / LIMIT to LIMIT are tried: a few steps of sgd leave logits that are tiny
UNCERTAIN = 0.5  # standard error of log T from which on a fit means nothing: T may then be 1.6 times as large as fitted

_POINTS = 17  # temperatures that one pass over the photos tries
_PASSES = 3  # each narrows log T down to a sixteenth: in the end to 0.0034, within which the slope is a straight line


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The temperature of a head, and its calibration with that temperature."""

    temperature: float  # exactly 1 where none could be fitted
    validation: Calibration | None  # of the head that was validated, on which T was fitted; None: no photos
    test: Calibration | None  # None: no photos


def calibrate(validated: Head, final: Head, validation: Images, test: Images) -> Calibrated:
    """Fits the temperature of `validated` on the validation photos; see `fit`. In bounded memory.

    After lbfgs's last fit, `final` is another head, which has seen the validation photos: its probabilities on them
    would be too good, and T too low. So T is that of the head before, with the same C and fewer photos. That both need
    the same T is an assumption; the calibration of the test photos, of `final` with T, shows how far it holds.
    """
    temperature = fit(validated, validation)
    on_validation = evaluate(_scaled(validated, temperature), validation)
    on_test = evaluate(_scaled(final, temperature), test)
    return Calibrated(
        temperature,
        on_validation.calibration if on_validation else None,
        on_test.calibration if on_test else None,
    )


def fit(head: Head, images: Images) -> float:
    """The temperature T > 0 that minimises the mean cross entropy of softmax(logits / T) on the images.

    Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2. In 1 / T that is convex, so the slope
    changes its sign once, and `_PASSES` passes over the images find where, to a relative error of about 1e-5. 1 where
    there is no such T between 1 / LIMIT and LIMIT: there are no images, the head makes no mistake on them, or is no
    better than chance. Also 1 where the images say too little: where the standard error of log T, by the Fisher
    information 1 / sqrt(n * d2 cross entropy / d (log T)2), exceeds UNCERTAIN. That is so for fewer than about 20
    images, or hardly a mistake.
    """
    if not len(images):
        return 1.0
    low, high = -math.log(LIMIT), math.log(LIMIT)  # of log T
    for number in range(_PASSES):
        candidates = np.linspace(low, high, _POINTS)
        slopes = _slopes(head, images, candidates)
        too_low = int(np.count_nonzero(slopes <= 0))
        if not np.isfinite(slopes).all() or (number == 0 and too_low in (0, _POINTS)):
            return 1.0
        place = min(max(too_low, 1), _POINTS - 1)  # rounding may have changed the sign at an end
        low, high = candidates[place - 1], candidates[place]
    below, above = slopes[place - 1 : place + 1]
    curvature = (above - below) / (high - low)
    if not curvature * len(images) >= 1 / UNCERTAIN**2:
        return 1.0
    return float(np.exp(low - below / curvature))


def _slopes(head: Head, images: Images, log_temperatures: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64 [k]: the derivative of the mean cross entropy with respect to log T, at each of the k log T.

    For an image with logits z and class y, with p = softmax(z / T), it is (z[y] - sum_c p[c] z[c]) / T.
    """
    sums = np.zeros(len(log_temperatures))
    for bottlenecks, label_ids in batches.sequential(images):
        logits = bottlenecks.astype(np.float32, copy=False) @ head.weights + head.biases
        logits -= logits.max(axis=1, keepdims=True)  # exp cannot overflow
        own = logits[np.arange(len(logits)), label_ids]
        for k, temperature in enumerate(np.exp(log_temperatures).astype(np.float32)):
            powers = logits / temperature
            np.exp(powers, out=powers)
            means = np.einsum("ic,ic->i", powers, logits) / powers.sum(axis=1)
            sums[k] += (own - means).sum(dtype=np.float64) / temperature
    return sums / len(images)


def _scaled(head: Head, temperature: float) -> Head:
    return Head(head.weights / np.float32(temperature), head.biases / np.float32(temperature))
