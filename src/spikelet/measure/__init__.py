"""Measures of a trained network: accuracy, calibration, noise, health, energy, saliency.

Each is a pure function of networks and tensors; `spikelet.examine` applies them to finished runs.
"""

from spikelet.measure.accuracy import (
    accuracy,
    accuracy_over_steps,
    answers_over_steps,
    correct,
    evaluating,
    late,
    predictions_over_steps,
)
from spikelet.measure.calibration import (
    agreement,
    calibration_error,
    knee,
    negative_log_likelihood,
)
from spikelet.measure.corruptions import corrupt
from spikelet.measure.definitions import definitions
from spikelet.measure.early import early_exit
from spikelet.measure.energy import of_ann, of_quantised, of_student
from spikelet.measure.evenness import evenness
from spikelet.measure.health import health, mean_rates
from spikelet.measure.inside import disturbed
from spikelet.measure.interval import paired_interval, t_quantile
from spikelet.measure.operations import operations
from spikelet.measure.saliency import input_gradients, integrated_gradients, similarities
from spikelet.measure.similarity import linear_cka
from spikelet.measure.vitals import gradient_norms, vitals

__all__ = [
    "accuracy",
    "accuracy_over_steps",
    "agreement",
    "answers_over_steps",
    "calibration_error",
    "correct",
    "corrupt",
    "definitions",
    "disturbed",
    "early_exit",
    "evaluating",
    "evenness",
    "gradient_norms",
    "health",
    "input_gradients",
    "integrated_gradients",
    "knee",
    "late",
    "linear_cka",
    "mean_rates",
    "negative_log_likelihood",
    "of_ann",
    "of_quantised",
    "of_student",
    "operations",
    "paired_interval",
    "predictions_over_steps",
    "similarities",
    "t_quantile",
    "vitals",
]
