"""What is to be pruned and by what: the network's origin, its table, its images, and how a run goes about it.

Values only; nothing is built or checked here but what follows from the values themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aap_hw.attention.sums import Reduction, check_score
from aap_hw.compile.keys.precision import FP32, INT8, MIXTURES, PLANNED_PRECISIONS, NetworkPrecision
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.lut.table import LatencyTable
from aap_hw.models.origin import Origin
from aap_hw.prune.defaults import (
    ALLOCATORS,
    ATTENTION_CUTS,
    SCHEDULES,
    SCORE_SCALES,
    SCORES,
    THRESHOLD_WEIGHTS,
    Allocator,
    AttentionCuts,
    Schedule,
    Score,
    ScoreScale,
    ThresholdWeights,
)
from aap_hw.train.samples import Samples
from aap_hw.train.settings import TrainSettings
from aap_hw.validation import one_of, require

if TYPE_CHECKING:
    from aap_hw.compile.keys.target import DeviceTarget
    from aap_hw.device.boards import Boards
    from aap_hw.device.connection import Device

# What attention is averaged over unless told otherwise: about so many pixels, or other positions, within these numbers
# of images.
CALIBRATION_PIXELS = 800_000
FEWEST_IMAGES, MOST_IMAGES = 16, 512
# Seeds are below this, as PyTorch takes none of more than 64 bits.
SEEDS = 10**18


@dataclass(frozen=True)
class PruneSettings:
    """How a run prunes.

    Attributes
    ----------
    rounds : steps in which the budget is approached; with an accuracy drop alone the most that are tried. None takes
        ``defaults.ROUNDS`` or ``defaults.MOST_ROUNDS``.
    calibration_images : images that attention is averaged over; None takes 16 at 224 x 224 up to 512 at 32 x 32.
    score : what tells important channels: ``read-attention``, the published ``attention``, or one of
        ``aap_hw.attention.ALTERNATIVES``; None takes what suits the allocator, see ``scored_by``.
    score_scale : how scores are brought to one scale in all groups, see ``aap_hw.attention.scale``.
    schedule : how budgets fall from round to round, see ``aap_hw.policy.round_budgets``.
    allocator : how widths are chosen: ``exact``, or ``threshold`` for the rule of the paper, Automatic Attention
        Pruning (arXiv 2303.08595).
    threshold_weights : what the paper's rule weights groups by, ``parameters``, ``flops`` or ``latency``; None takes
        what is limited.
    depth : whether residual branches may be removed altogether; a threshold never does.
    attention_cuts : what attention is cut in: the ``widths`` of heads, of all heads of a block alike, or whole
        ``heads``, where the model's code follows.
    renormalised : whether channels that a norm is taken over may be cut; None cuts them if the network is trained.
    reduction, p : the paper's family (mean, sum, max) and exponent of the score ``attention``.
    only, skip : patterns of the channel groups that may be cut, and of those that may not, by name or by
        kind, as ``kind:mlp`` (``aap_hw.graph.selection``, ``aap_hw.graph.groups.kinds``).
    training : how each round trains; its learning-rate schedule starts anew each time.
    seed : of the training's order and augmentation.
    qat : train the last round with the roundings of int8 (quantisation-aware); with an accuracy drop alone each round,
        as each may be the last.
    precision : what the pruned network will compute in, and latencies are of: ``fp32``, ``half`` or ``int8``, or
        ``mixed`` if each plan is to choose ``int8`` or ``fp32`` for each group, or ``mixed:int8,half``; shares of a
        latency are then of the unpruned network in the more exact of the two.

    Raises
    ------
    UserError : nothing can be pruned by a value, or it would be ignored.
    """

    rounds: int | None = None
    calibration_images: int | None = None
    score: Score | None = None
    score_scale: ScoreScale = "raw"
    schedule: Schedule = "geometric"
    allocator: Allocator = "exact"
    threshold_weights: ThresholdWeights | None = None
    depth: bool = True
    attention_cuts: AttentionCuts = "widths"
    renormalised: bool | None = None
    reduction: Reduction = "mean"
    p: float = 1.0
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    training: TrainSettings = field(default_factory=TrainSettings)
    seed: int = 0
    precision: NetworkPrecision = FP32
    qat: bool = False

    def __post_init__(self) -> None:
        flags = {"depth": self.depth, "qat": self.qat, "renormalised": self.renormalised}
        require(
            "prune settings",
            # Of a text each letter would be a pattern, and each word is true.
            *(
                (not isinstance(patterns, str), f"{name} is {patterns!r}; give a tuple of patterns: ({patterns!r},)")
                for name, patterns in (("only", self.only), ("skip", self.skip))
            ),
            *(
                (
                    value in (True, False) or (name == "renormalised" and value is None),
                    f"{name} is {value!r}; give True or False",
                )
                for name, value in flags.items()
            ),
            (
                isinstance(self.training, TrainSettings),
                f"training is {self.training!r}; give aap_hw.TrainSettings(...)",
            ),
            (self.rounds is None or self.rounds >= 1, f"rounds is {self.rounds}; give at least 1"),
            (
                self.calibration_images is None or self.calibration_images >= 1,
                f"calibration_images is {self.calibration_images}; give at least 1",
            ),
            (abs(self.seed) < SEEDS, f"seed is {self.seed}; give one of at most 18 digits"),
            one_of("score", self.score, (None, *SCORES)),
            one_of("score_scale", self.score_scale, SCORE_SCALES),
            one_of("schedule", self.schedule, SCHEDULES),
            one_of("allocator", self.allocator, ALLOCATORS),
            one_of("attention_cuts", self.attention_cuts, ATTENTION_CUTS),
            one_of("precision", self.precision, PLANNED_PRECISIONS),
            one_of("threshold_weights", self.threshold_weights, (None, *THRESHOLD_WEIGHTS)),
            (
                self.threshold_weights is None or self.allocator == "threshold",
                "threshold_weights say what a threshold weights groups by; add --allocator threshold",
            ),
            (
                self.precision in (INT8, *MIXTURES) or not self.qat,
                "qat trains with the roundings of int8; add --precision int8 or mixed",
            ),
            (
                self.precision not in MIXTURES or self.allocator == "exact",
                "a threshold chooses widths and no precisions; leave out --allocator, or choose one --precision",
            ),
        )
        check_score(self.reduction, self.p)

    @property
    def scored_by(self) -> Score:
        """The score that is used: if none is asked for the best known, or the published one for the published rule."""
        return self.score or ("attention" if self.allocator == "threshold" else "read-attention")

    def cuts_renormalised(self, retrain: bool) -> bool | None:
        """Whether channels that a norm is taken over may be cut; None if they may not as nothing is trained."""
        return True if retrain and self.renormalised is None else self.renormalised

    def images_for(self, inputs: Inputs) -> int:
        """How many calibration images, or other samples, a network is shown."""
        if self.calibration_images is not None:
            return self.calibration_images
        affordable = CALIBRATION_PIXELS // inputs.positions
        return min(MOST_IMAGES, max(FEWEST_IMAGES, affordable))


@dataclass(frozen=True)
class Task:
    """A network to prune, and what by.

    Attributes
    ----------
    data : images, or other samples, that attention is read from, and that training uses if ``retrain``.
    device : where the result is measured, held only while something is; None leaves every latency a prediction.
    allow_emulated, allow_estimated : accept a table whose latencies are of an emulator, or were estimated.
    """

    origin: Origin
    table: LatencyTable
    data: Samples
    retrain: bool = False
    device: Device | Boards | None = None
    allow_emulated: bool = False
    allow_estimated: bool = False

    @property
    def target(self) -> DeviceTarget:
        """The machine that the table's networks are compiled for."""
        from aap_hw.compile.keys.target import device_target  # loads TVM: two seconds that planning does without

        return device_target(self.table.device["target"], self.table.device["threads"])

    @property
    def few_samples(self) -> Tensors:
        """Two samples of the split that decides, as the network takes them: what cuts are checked with."""
        return self.data.inputs(self.data.chosen_by, self.origin.inputs, self.data.spread(self.data.chosen_by, 2))
