"""Measures of a trained network: accuracy over time steps, health of its neurons, intervals."""

from spikelet.measure.accuracy import (
    accuracy,
    accuracy_over_steps,
    answers_over_steps,
    correct,
    evaluating,
    predictions_over_steps,
)
from spikelet.measure.health import health
from spikelet.measure.interval import paired_interval, t_quantile

__all__ = [
    "accuracy",
    "accuracy_over_steps",
    "answers_over_steps",
    "correct",
    "evaluating",
    "health",
    "paired_interval",
    "predictions_over_steps",
    "t_quantile",
]
