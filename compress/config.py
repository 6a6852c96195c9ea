"""Every setting of a run, once: the command line, the YAML file and the Python function all read this page."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from iekd.compress.targets import TARGETS
from iekd.compress.texts import parse_latency, parse_per_channel, parse_stages, slug
from iekd.errors import InputError


class Option(NamedTuple):
    """How a setting is shown on the command line."""

    help: str
    panel: str = "Training"
    metavar: str = ""


_MAIN, _DATA, _TRAINING, _COMPRESS, _METHOD, _TARGET, _RUN = (
    "The job",
    "Data",
    "Training",
    "Pruning and quantisation",
    "Method",
    "Target and limits",
    "Run",
)

Fraction = Annotated[float, Gt(0), Lt(1)]
Count = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]
Triple = tuple[float, float, float]


MAX_DROP = 0.01
"""Accuracy that a precision may lose where the settings leave it open."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one run.  None means: chosen from the data, the models or the target, and recorded."""

    __pydantic_config__: ClassVar[dict[str, bool]] = {"coerce_numbers_to_str": True}  # YAML reads `tap: -2` as a number

    teacher: Annotated[str, Option("timm name, alias, artefact folder, or package.module:function.", _MAIN)]
    student: Annotated[str, Option("The same, for the network that ships.", _MAIN)]
    data: Annotated[str, Option("digits, folder:PATH, or a name of timm's create_dataset as NAME:ROOT.", _MAIN)] = (
        "digits"
    )
    target: Annotated[str, Option(f"What the student will run on: {', '.join(TARGETS)}.", _MAIN)] = "cpu"
    out: Annotated[
        str | None,
        Option("Run folder.  Default: runs/TEACHER-STUDENT-DATA; of a search runs/search-TEACHER-DATA.", _MAIN, "DIR"),
    ] = None

    image_size: Annotated[int | None, Ge(8), Option("Height and width of the input, pixels.", _DATA)] = None
    val_fraction: Annotated[
        Fraction | None, Option("Share kept for validation where the data has no split.", _DATA)
    ] = None
    train_limit: Annotated[Count | None, Option("Use a balanced subset of this many training images.", _DATA)] = None
    val_limit: Annotated[Count | None, Option("The same for validation.", _DATA)] = None
    augment: Annotated[str | None, Option("none, digits, crop, standard or strong.", _DATA)] = None
    skip_bad_images: Annotated[bool, Option("Leave out unreadable images, and count them.", _DATA)] = False
    mean: Annotated[
        str | None,
        Option("What is taken from red, green and blue of 0..1, such as 0.5,0.5,0.5.  Default: the teacher's.", _DATA),
    ] = None
    std: Annotated[str | None, Option("What they are then divided by, likewise.", _DATA)] = None
    workers: Annotated[int | None, Ge(0), Option("Processes that load images.", _DATA)] = None

    epochs: Annotated[int | None, Ge(1), Option("Epochs of distillation.", _TRAINING)] = None
    teacher_epochs: Annotated[int | None, Ge(0), Option("Epochs of teacher training.", _TRAINING)] = None
    batch_size: Annotated[Count, Option("Images a step.", _TRAINING)] = 64
    lr: Annotated[float | None, Gt(0), Option("Student's learning rate at its peak (AdamW).", _TRAINING)] = None
    teacher_lr: Annotated[float | None, Gt(0), Option("Teacher's learning rate at its peak.", _TRAINING)] = None
    weight_decay: Annotated[Weight, Option("Decoupled weight decay.", _TRAINING)] = 0.02
    teacher_weights: Annotated[str, Option("auto, hub, scratch or FILE.", _TRAINING)] = "auto"
    student_weights: Annotated[str, Option("auto, hub, scratch or FILE.", _TRAINING)] = "auto"
    adapt_head: Annotated[
        bool, Option("Accept weights of another class count; the classifier starts fresh.", _TRAINING)
    ] = False
    keep: Annotated[str, Option("Which epoch ships: last, or best on the validation set.", _TRAINING)] = "last"
    mixed_precision: Annotated[str, Option("auto (bf16 on a GPU), no, bf16, or fp16 on a GPU.", _TRAINING)] = "auto"
    device: Annotated[str, Option("auto, cpu or cuda: where training runs.", _TRAINING)] = "auto"
    seed: Annotated[int, Ge(0), Option("Everything random but the choice of images follows from it.", _TRAINING)] = 0

    prune: Annotated[
        float, Ge(0), Lt(1), Option("Share of the student to remove, as --prune-goal counts; 0: none.", _COMPRESS)
    ] = 0.0
    prune_goal: Annotated[
        str, Option("What --prune is a share of: macs, channels, or latency as measured here.", _COMPRESS)
    ] = "macs"
    prune_steps: Annotated[Count, Option("Prunings, each recovered under the teacher.", _COMPRESS)] = 2
    prune_epochs: Annotated[int | None, Ge(1), Option("Epochs of each recovery.", _COMPRESS)] = None
    prune_criterion: Annotated[str, Option("group-norm, magnitude, bn-scale or taylor.", _COMPRESS)] = "group-norm"
    prune_scope: Annotated[str, Option("uniform or global.", _COMPRESS)] = "uniform"
    prune_round_to: Annotated[
        Count | None, Option("Widths become multiples of it.  Default: as the target likes, 16 or 8.", _COMPRESS)
    ] = None
    precision: Annotated[
        str,
        Option("fp32, fp16, bf16, int8, fp8, or best: all that the target has.", _COMPRESS),
    ] = "fp32"
    max_drop: Annotated[
        float | None,
        Ge(0),
        Le(1),
        Option(
            "Most accuracy that a precision may lose; with best, and where it is given, layers stay in float until it "
            "holds.  Default: 0.01.",
            _COMPRESS,
        ),
    ] = None
    qat: Annotated[str, Option("Train under simulated int8: auto (where it loses more), always, never.", _COMPRESS)] = (
        "auto"
    )
    qat_epochs: Annotated[int | None, Ge(1), Option("Epochs of that training.", _COMPRESS)] = None

    objective: Annotated[str, Option("Terms joined by +; `iekd-compress objectives` lists them.", _METHOD)] = "ie-ft+kd"
    tap: Annotated[
        str,
        Option(
            "Stages to tap, joined by commas: by number (-1: the last) or name, such as layer3, or auto; before:-1 is "
            "the map before the activation that ends a stage.",
            _METHOD,
        ),
    ] = "-1"
    teacher_tap: Annotated[str | None, Option("The teacher's stages.  Default: as --tap.", _METHOD)] = None
    task_weight: Annotated[Weight, Option("Weight of the cross-entropy on the labels.", _METHOD)] = 1.0
    inherit_weight: Annotated[Weight | None, Option("Weight of the inheritance term.", _METHOD)] = None
    explore_weight: Annotated[Weight | None, Option("Weight of the exploration term.", _METHOD)] = None
    explore_margin: Annotated[
        float | None, Gt(0), Option("Distance from the teacher beyond which exploring earns nothing more.", _METHOD)
    ] = None
    explore_form: Annotated[
        str, Option("distance: away from the teacher, as published; cosine, cka: unrelated to it.", _METHOD)
    ] = "distance"
    transfer_weight: Annotated[Weight | None, Option("Weight of a plain transfer.", _METHOD)] = None
    kd_weight: Annotated[Weight | None, Option("Weight of the logit term.", _METHOD)] = None
    temperature: Annotated[float | None, Gt(0), Option("Temperature of the logit term.", _METHOD)] = None
    logit_options: Annotated[
        str, Option("Values of a logit term's own, such as beta=8; `iekd-compress objectives` lists them.", _METHOD)
    ] = ""
    inherit_fraction: Annotated[float, Ge(0), Le(1), Option("Share of channels that inherit.", _METHOD)] = 0.5
    split: Annotated[str, Option("natural, random or relevance.", _METHOD)] = "natural"
    factor_epochs: Annotated[Count, Option("Epochs of the teacher's auto-encoder.", _METHOD)] = 10
    factor_channels: Annotated[Count, Option("Most channels of FT's factors.", _METHOD)] = 128
    hidden_channels: Annotated[Count, Option("FT's encoders bring wider maps down to this many.", _METHOD)] = 256
    mutual_transfer: Annotated[str, Option("What ie-dml lifts: ft, at or vkd.", _METHOD)] = "ft"
    views: Annotated[
        int | None,
        Ge(0),
        Option("Augmented views kept of each image, with the teacher's answers; 0: no cache.", _METHOD),
    ] = None
    cache_gib: Annotated[
        float, Ge(0), Option("Most disk that each set of the teacher's answers may take, GiB.", _METHOD)
    ] = 4.0

    min_retained: Annotated[float, Gt(0), Le(2), Option("Least student accuracy / teacher accuracy.", _TARGET)] = 0.97
    max_latency: Annotated[str | None, Option("Most median latency of the student, such as 2ms.", _TARGET)] = None
    threads: Annotated[Count | None, Option("Threads for the benchmark.  Default: this machine's cores.", _TARGET)] = (
        None
    )
    bench_seconds: Annotated[float, Gt(0), Option("Seconds measured for each model.", _TARGET)] = 3.0

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        if self.out is not None:
            return Path(self.out)
        parts = (self.teacher, self.student, self.data)
        return Path("runs") / "-".join(slug(part) for part in parts)

    @property
    def max_latency_ms(self) -> float | None:
        """``max_latency`` in milliseconds."""
        return None if self.max_latency is None else parse_latency(self.max_latency)

    @property
    def normalization(self) -> tuple[Triple | None, Triple | None]:
        """``mean`` and ``std`` as numbers for red, green and blue; None where the settings leave it to the teacher."""
        mean, std = (
            None if text is None else parse_per_channel(flag(name), text)
            for name, text in (("mean", self.mean), ("std", self.std))
        )
        if std is not None and min(std) <= 0:
            raise InputError(f"--std {self.std}: nothing can be divided by it.", "Give numbers above 0.")
        return mean, std

    @property
    def drop_limit(self) -> float:
        """Most accuracy that a precision may lose, 0..1."""
        return MAX_DROP if self.max_drop is None else self.max_drop

    @property
    def enforces_drop(self) -> bool:
        """Whether layers stay in float until that holds: with ``best``, and where the limit was given."""
        return self.precision == "best" or self.max_drop is not None

    @property
    def prune_share(self) -> float:
        """Share of what is left that each of ``prune_steps`` removes."""
        return 1 - float((1 - self.prune) ** (1 / self.prune_steps))

    @property
    def round_to(self) -> int:
        """What the widths that pruning leaves are multiples of."""
        return self.prune_round_to or TARGETS[self.target].round_to

    @property
    def taps(self) -> tuple[int | str, ...]:
        """``tap`` as stage numbers and names."""
        return parse_stages(flag("tap"), self.tap)

    @property
    def teacher_taps(self) -> tuple[int | str, ...]:
        """``teacher_tap`` likewise, or ``taps``."""
        return self.taps if self.teacher_tap is None else parse_stages(flag("teacher_tap"), self.teacher_tap)


def setting_defaults() -> dict[str, Any]:
    """What a run or a search had for a setting that is newer than it."""
    fields = dataclasses.fields(RunConfig)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


CHOICES = {
    "target": tuple(TARGETS),
    "precision": ("fp32", "fp16", "bf16", "int8", "fp8", "best"),
    "prune_goal": ("macs", "channels", "latency"),
    "prune_criterion": ("group-norm", "magnitude", "bn-scale", "taylor"),
    "prune_scope": ("uniform", "global"),
    "qat": ("auto", "always", "never"),
    "keep": ("last", "best"),
    "mixed_precision": ("auto", "no", "bf16", "fp16"),
    "device": ("auto", "cpu", "cuda"),
    "augment": ("none", "digits", "crop", "standard", "strong"),
    "split": ("natural", "random", "relevance"),
    "explore_form": ("distance", "cosine", "cka"),
}

FREE_TO_CHANGE = {"out", "min_retained", "max_latency", "workers"}
"""Settings that a resumed run may change: they do not touch what was trained or measured.  Which of the measured
files ships is chosen anew."""


def options() -> dict[str, Option]:
    """How each setting is shown, by field name, in the order of the class."""
    hints = get_type_hints(RunConfig, include_extras=True)
    return {
        field.name: next(item for item in hints[field.name].__metadata__ if isinstance(item, Option))
        for field in dataclasses.fields(RunConfig)
    }


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
