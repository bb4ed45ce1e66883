"""The words that a run is told by, and what it does unless told otherwise.

Words and numbers alone, so that a command's help need not load what a run needs.
"""

from __future__ import annotations

from typing import Literal, get_args

# What the words mean is said where `aap_hw.prune.task.PruneSettings` uses them.
Score = Literal["read-attention", "attention", "taylor", "bn-scale", "weight-l1"]
ScoreScale = Literal["raw", "mean", "l2", "max", "rank"]
Schedule = Literal["geometric", "additive"]
Allocator = Literal["exact", "threshold"]
AttentionCuts = Literal["widths", "heads"]
ThresholdWeights = Literal["latency", "flops", "parameters"]
SCORES: tuple[Score, ...] = get_args(Score)
SCORE_SCALES: tuple[ScoreScale, ...] = get_args(ScoreScale)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
ALLOCATORS: tuple[Allocator, ...] = get_args(Allocator)
ATTENTION_CUTS: tuple[AttentionCuts, ...] = get_args(AttentionCuts)
THRESHOLD_WEIGHTS: tuple[ThresholdWeights, ...] = get_args(ThresholdWeights)

# Steps to a budget, and the most steps that an accuracy drop alone may take.
ROUNDS, MOST_ROUNDS = 3, 10
# Percentage points of accuracy that int8 may cost the unpruned network; layers that cost more stay in float32.
LARGEST_LOSS = 0.5
# Training samples that ranges of values are measured on for int8, where a run has none of its own.
CALIBRATION_IMAGES = 128
