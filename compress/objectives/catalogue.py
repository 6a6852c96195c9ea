"""The objectives by name, importable without torch so that the command line can list them at once.

Adding an objective is its file and one entry here (docs/add-an-objective.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_HERE = "iekd.compress.objectives"

KINDS = {
    "labels": "labels alone",
    "logits": "logits",
    "transfer": "features",
    "lift": "inherit and explore",
    "mutual": "two networks together",
}
"""Kinds of terms, in words."""


@dataclass(frozen=True)
class Entry:
    """One term that an objective's name may be composed of.

    Attributes:
        name: as the user writes it.
        kind: one of :data:`KINDS`.
        summary: a few words.
        paper: where it was published.
        target: ``package.module:name`` of the class or function, imported on first use.
        defaults: what the settings fall back to for this term; docs/method.md says where each value comes from.  A
            mutual mode with an ``inherit_weight`` lifts a transfer.
        fewest_classes: that leave the term something to teach.
        why: what it lacks with fewer.
        before_activation: it reads maps before the activation that ends a stage, where one does.
        options: what a term on logits has beside weight and temperature; keywords of ``target``.
    """

    name: str
    kind: str
    summary: str
    paper: str = ""
    target: str = ""
    defaults: Mapping[str, float] = field(default_factory=dict)
    fewest_classes: int = 2
    why: str = ""
    before_activation: bool = False
    options: Mapping[str, float] = field(default_factory=dict)


_ENTRIES = (
    Entry("ce", "labels", "labels alone, no teacher"),
    Entry(
        "kd",
        "logits",
        "softened logits",
        "Hinton et al. 2015, arXiv 1503.02531",
        f"{_HERE}.logits:softened_kl",
        {"kd_weight": 1.0, "temperature": 4.0},
    ),
    Entry(
        "dkd",
        "logits",
        "target class and the others apart",
        "Zhao et al., CVPR 2022, arXiv 2203.08679",
        f"{_HERE}.logits:decoupled",
        {"kd_weight": 1.0, "temperature": 4.0},
        fewest_classes=3,
        why="there is only one wrong class to distil",
        options={"alpha": 1.0, "beta": 2.0},
    ),
    Entry(
        "dist",
        "logits",
        "correlation between and within classes",
        "Huang et al., NeurIPS 2022, arXiv 2205.10536",
        f"{_HERE}.logits:correlation",
        {"kd_weight": 1.0, "temperature": 1.0},
        options={"beta": 2.0, "gamma": 2.0},
    ),
    Entry(
        "lskd",
        "logits",
        "kd of standardised logits",
        "Sun et al., CVPR 2024, arXiv 2403.01427",
        f"{_HERE}.logits:standardised",
        {"kd_weight": 9.0, "temperature": 2.0},
        fewest_classes=3,
        why="two standardised logits say only their order",
    ),
    Entry(
        "ats",
        "logits",
        "a lower temperature for the wrong classes",
        "Li et al., NeurIPS 2022, arXiv 2210.04427",
        f"{_HERE}.logits:asymmetric",
        {"kd_weight": 1.0, "temperature": 4.0},
        options={"wrong": 0.75},
    ),
    Entry(
        "at",
        "transfer",
        "attention maps",
        "Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928",
        f"{_HERE}.attention:AttentionTransfer",
        {"transfer_weight": 15.6, "inherit_weight": 15.6, "explore_weight": 1.56},
    ),
    Entry(
        "ft",
        "transfer",
        "factors: what small encoders make of the maps",
        "Kim et al., NeurIPS 2018, arXiv 1802.04977",
        f"{_HERE}.factor:FactorTransfer",
        {"transfer_weight": 11.05, "inherit_weight": 11.05, "explore_weight": 1.105},
    ),
    Entry(
        "od",
        "transfer",
        "margin ReLU and partial L2",
        "Heo et al., ICCV 2019, arXiv 1904.01866",
        f"{_HERE}.overhaul:OverhaulTransfer",
        {"transfer_weight": 6.0, "inherit_weight": 6.0, "explore_weight": 1.105},
        before_activation=True,
    ),
    Entry(
        "vkd",
        "transfer",
        "pooled features through an orthogonal projection",
        "Miles et al., CVPR 2024, arXiv 2403.06213",
        f"{_HERE}.orthogonal:OrthogonalTransfer",
        {"transfer_weight": 1.0, "inherit_weight": 1.0, "explore_weight": 1.0},
    ),
    Entry(
        "dml",
        "mutual",
        "two networks follow each other's logits",
        "Zhang et al., CVPR 2018, arXiv 1706.00384",
        f"{_HERE}.mutual:DeepMutual",
        {"kd_weight": 1.0, "temperature": 1.0},
    ),
    Entry(
        "ie-dml",
        "mutual",
        "dml, and each one's features inherit from and explore away from the other's",
        "Huang et al., CVPR 2021, arXiv 2107.00181",
        f"{_HERE}.mutual:DeepMutual",
        {"kd_weight": 1.0, "temperature": 1.0, "inherit_weight": 1.105, "explore_weight": 1.105},
    ),
    Entry(
        "switokd",
        "mutual",
        "the teacher learns too, and waits while it is too far ahead",
        "Qian et al., ECCV 2022",
        f"{_HERE}.mutual:Switchable",
        {"kd_weight": 1.0, "temperature": 1.0},
    ),
)

OBJECTIVES: dict[str, Entry] = {}
"""Every term by its name, lifts included."""


def register(entry: Entry) -> None:
    """Make a term known; a transfer comes with its lift ``ie-NAME``."""
    OBJECTIVES[entry.name] = entry
    if entry.kind == "transfer":
        OBJECTIVES[f"ie-{entry.name}"] = replace(
            entry,
            name=f"ie-{entry.name}",
            kind="lift",
            summary=f"inherit and explore over {entry.name}",
            paper="Huang et al., CVPR 2021, arXiv 2107.00181",
        )


for _entry in _ENTRIES:
    register(_entry)


def describe_objectives() -> tuple[Entry, ...]:
    """All terms: labels, logits, transfers, lifts, mutual."""
    return tuple(sorted(OBJECTIVES.values(), key=lambda entry: list(KINDS).index(entry.kind)))


def valid_names() -> str:
    """The terms by kind, and how they are joined, in one line."""
    groups = {kind: [entry.name for entry in OBJECTIVES.values() if entry.kind == kind] for kind in KINDS}
    listed = "; ".join(f"{', '.join(names)} ({KINDS[kind]})" for kind, names in groups.items())
    return f"{listed}; joined by +, such as ie-ft+kd"


def is_mutual(name: str) -> bool:
    """Does this objective train two networks together, without a finished teacher?"""
    return name.lower() in OBJECTIVES and OBJECTIVES[name.lower()].kind == "mutual"


def reads_maps(name: str) -> bool:
    """Does this objective, a valid one, look at the networks' maps, and not at their logits alone?"""
    terms = [OBJECTIVES[part] for part in name.lower().split("+")]
    return any(term.kind == "transfer" or "inherit_weight" in term.defaults for term in terms)


def reads_before_activation(name: str) -> bool:
    """Does this objective read maps before the activation that ends a stage, where one does?"""
    return any(part in OBJECTIVES and OBJECTIVES[part].before_activation for part in name.lower().split("+"))


def reading_of(name: str) -> dict[str, str]:
    """What a run hangs on of how its objective reads the networks; its settings do not say it, nor do older runs."""
    return {"maps for its objective": "before activations"} if reads_before_activation(name) else {}


def is_labels_alone(name: str) -> bool:
    """Does this objective learn nothing from the teacher?"""
    return all(part in OBJECTIVES and OBJECTIVES[part].kind == "labels" for part in name.lower().split("+"))
