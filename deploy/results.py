"""The schema of ``report.json``: what a run found out, in a form that other programs can read.

``SCHEMA_VERSION`` grows by one whenever a field changes its meaning or leaves; new optional fields do not count.
All durations are seconds and all latencies milliseconds; fractions lie in 0..1 and are never percentages.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Record(BaseModel):
    """Base of all records: unknown fields are refused, so that a typing slip cannot pass as data."""

    model_config = ConfigDict(extra="forbid")


class Interval(Record):
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Distribution(Record):
    """How long something took over many calls, milliseconds; no call is left out."""

    minimum: float
    mean: float
    median: Interval
    p90: Interval
    p95: Interval
    p99: Interval
    maximum: float
    cv: float = Field(description="coefficient of variation: standard deviation / mean")


class GpuConditions(Record):
    """What the first GPU did while it was measured, by nvidia-smi."""

    mhz: tuple[float, float] = Field(description="lowest and highest SM clock")
    celsius: float = Field(description="highest temperature")
    watts: float | None = Field(description="mean power draw")
    throttled: list[str] = Field(description="reasons given for clocks below what was asked for")


class Conditions(Record):
    """What the machine did while it was measured, sampled between the blocks; None where it cannot be read."""

    samples: int
    other_cpu: float | None = Field(description="processor cores that other processes used, on average")
    steal: float | None = Field(description="cores that the hypervisor took away, on average")
    mhz: tuple[float, float] | None = Field(description="lowest and highest processor clock")
    celsius: float | None = Field(description="highest temperature of any sensor")
    throttled: int | None = Field(description="times that a processor core was throttled for its heat")
    gpu: GpuConditions | None = None


class Latency(Distribution):
    """Single-stream latency of one file: one request in flight, batch ``batch``, milliseconds."""

    batch: int
    iterations: int = Field(description="measured calls; none is discarded")
    warmup_seconds: float
    measured_seconds: float
    policy: str = Field(description="what the headline figure includes, in words")
    trace: str = Field(description="raw trace, a file relative to the run folder")
    sample: list[float] = Field(description="at most 2,000 evenly spaced calls of the trace, in order, for drawing")
    parts: dict[str, Distribution] = Field(default={}, description="h2d, compute, d2h, enqueue, where told apart")
    conditions: Conditions | None = None
    warnings: list[str] = []


class Throughput(Record):
    """Overlapped calls of one file: ``streams`` requests in flight.  Never to be compared with a latency."""

    batch: int
    streams: int
    calls: int = Field(description="measured calls; none is discarded")
    warmup_seconds: float
    measured_seconds: float = Field(description="from the first call's start to the last call's end")
    images_per_second: Interval
    policy: str
    trace: str = Field(description="raw trace: start and end of every call, and its stream")


class Publishable(Record):
    """The two figures that MLPerf Inference asks of an edge device, each from at least 600 s of calls by default."""

    seconds: float
    single_stream: Latency = Field(description="one sample a query; its p90 is the figure")
    multi_stream: Latency = Field(description="eight samples a query; its p99 is the figure")


class RepeatedRatio(Record):
    """A ratio of two medians, measured interleaved and again in fresh processes."""

    ratio: Interval = Field(description="geometric mean over the processes, with Student's interval over them")
    runs: list[Interval] = Field(description="each process's own ratio, with its bootstrap interval over blocks")
    medians: list[tuple[float, float]] = Field(description="milliseconds of numerator and denominator, by process")
    warnings: list[str] = []


class ClassAccuracy(Record):
    """Correct answers for one class."""

    name: str
    correct: int
    total: int


class Accuracy(Record):
    """Top-1 accuracy on the validation set, measured through the exported file; the interval is Wilson's."""

    top1: Interval
    correct: int
    total: int
    per_class: list[ClassAccuracy]


class Verification(Record):
    """The exported file against what it was made from, on real validation images."""

    images: int
    largest_difference: float = Field(description="largest absolute difference of any logit")
    relative_difference: float = Field(description="the same, divided by the largest absolute logit")
    top1_agreement: float
    tolerance: float | None = Field(description="the relative difference that was allowed; None: it was not judged")
    reference: str = Field(default="the PyTorch model", description="what the file was compared with")


class Engine(Record):
    """The TensorRT engine that was built of a file, and measured in its place."""

    file: str = Field(description="relative to the run folder; its manifest and its layers lie beside it")
    sha256: str
    size_bytes: int
    build_seconds: float = Field(description="that its build took, when it was built")
    tensorrt: str = Field(description="the version that built it, and that it is bound to")
    gpu: str = Field(description="that it was built on, and is bound to")
    layers: int | None = Field(description="that compute; None where TensorRT's inspector does not tell")
    reformats: int | None = Field(description="layers that only bring a tensor into another layout or type")
    precisions: dict[str, int] = Field(description="computing layers by precision, as far as the inspector tells it")
    consists: str = Field(description="the same in one line")
    agreement: Verification | None = Field(description="of float32 with its file; not judged, for TF32 is allowed")


class ModelResult(Record):
    """One exported file and what was measured of it."""

    role: str = Field(description="'teacher' or 'student'")
    name: str = Field(description="architecture, a timm name where it has one")
    file: str = Field(description="relative to the run folder")
    sha256: str
    size_bytes: int
    parameters: int
    macs: int = Field(description="multiply-accumulates of one image")
    precision: str
    backend: str
    input_shape: list[int] = Field(description="channels, height, width")
    accuracy: Accuracy
    latency: Latency
    verification: Verification
    engine: Engine | None = Field(default=None, description="where the target runs engines")


class Curve(Record):
    """One logged quantity of one training stage, one value an epoch."""

    stage: str
    name: str
    values: list[float | None] = Field(description="None in epochs that had no such quantity")


class Stage(Record):
    """One stage of the pipeline."""

    name: str
    seconds: float
    epochs: int | None = None
    note: str = ""


class Dataset(Record):
    """What the models were trained and judged on."""

    name: str
    classes: list[str]
    train_images: int
    val_images: int
    skipped_images: int
    digest: str


class Verdict(Record):
    """Was the student good enough and fast enough?"""

    kept: bool
    retained: Interval = Field(description="student accuracy / teacher accuracy; paired bootstrap over the images")
    speedup: Interval = Field(description="teacher median / student median; bootstrap over interleaved blocks")
    min_retained: float
    max_latency_ms: float | None
    misses: list[str] = Field(description="one sentence for each limit that was missed")
    sentence: str


class Fingerprint(Record):
    """What ran on what."""

    device: str
    cores: int
    threads: int
    memory_gib: float
    os: str
    python: str
    packages: dict[str, str]
    gpu: str | None = None
    clocks: str = Field(description="'locked', 'floating' or 'unknown', with the governors where they are readable")
    gpu_clocks: str | None = Field(default=None, description="of the moment, as far as nvidia-smi tells")
    extra: dict[str, str] = {}


class PartDiagnosis(Record):
    """Some channels of the student's tap."""

    part: str = Field(description="'inheritance', 'exploration' or 'all'")
    channels: int
    active: int = Field(description="channels that are ever active; the others are dead")
    cka: Interval | None = Field(description="linear CKA with the teacher's tap; None where no channel varies")


class TapDiagnosis(Record):
    """One tap of the student against the teacher's."""

    stage: int = Field(description="number of the student's stage, from its input")
    teacher_shape: list[int] = Field(description="channels, height, width")
    student_shape: list[int] = Field(description="channels, height, width")
    rectified: bool = Field(description="active means above zero; otherwise: varies over images and positions")
    parts: list[PartDiagnosis]
    difference: Interval | None = Field(description="CKA of the inheritance part less that of the exploration part")
    chance: float | None = Field(description="share of random splits of these channels that differ at least as much")


class NoiseLevel(Record):
    """Accuracy with noisy weights."""

    relative_std: float = Field(description="of the noise, as a share of each weight tensor's own standard deviation")
    accuracies: list[float] = Field(description="one for each noise that was drawn")
    mean: float
    spread: float = Field(description="standard deviation over the noises")


class NoiseCurve(Record):
    """One network under growing noise."""

    name: str
    levels: list[NoiseLevel]


class Diagnosis(Record):
    """What the student learned: `iekd-compress diagnose`."""

    images: int = Field(description="validation images that all of it was measured on")
    objective: str
    network: str = Field(default="student", description="folder of the student that was diagnosed, in the run's")
    remark: str = Field(default="", description="what tells it from the file that ships")
    artefacts: dict[str, str] = Field(description="SHA-256 of what was diagnosed, by folder")
    taps: list[TapDiagnosis]
    noise: list[NoiseCurve] = Field(description="the student's, and that of the run it was compared with")
    sentence: str


class Report(Record):
    """Everything that a run found out."""

    schema_version: int = SCHEMA_VERSION
    iekd_version: str
    created: str = Field(description="ISO 8601, UTC")
    command: str
    config: dict[str, Any]
    dataset: Dataset
    teacher: ModelResult
    student: ModelResult = Field(description="the file that ships")
    variants: list[ModelResult] = Field(default=[], description="the student's other files, such as other precisions")
    verdict: Verdict
    stages: list[Stage]
    curves: list[Curve]
    fingerprint: Fingerprint
    diagnosis: Diagnosis | None = Field(default=None, description="where `iekd-compress diagnose` was run")
    notes: list[str] = Field(default=[], description="what the reader should know: fallbacks taken, warnings")
