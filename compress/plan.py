"""What the settings leave open, decided once from the data and the models and then kept with the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from iekd.compress.config import RunConfig, Triple
from iekd.compress.data import ImageData
from iekd.compress.learning_rate import peak_rate
from iekd.compress.objectives.catalogue import is_labels_alone, is_mutual
from iekd.compress.observer import Observer
from iekd.compress.precisions import left_out
from iekd.compress.teacher import decide_weights, require_classes
from iekd.compress.unread import unread_note
from iekd.compress.untrained import untrained
from iekd.errors import InputError
from iekd.models.checkpoint import read_description
from iekd.models.ensemble import member_names
from iekd.models.preprocessing import Preprocessing
from iekd.models.registry import is_artefact, resolve

TEACHER_EPOCHS = {"scratch": 8, "hub": 5, "file": 0, "artefact": 0, "object": 0}
"""Epochs of teacher training where ``--teacher-epochs`` is not given, by where its weights come from."""

STUDENT_EPOCHS = 16


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every decision that the settings leave open; JSON types only, so that a resumed run reads it back."""

    image_size: int
    crop_fraction: float
    mean: Triple
    std: Triple
    augmentation: str
    teacher_origin: str
    student_origin: str
    teacher_epochs: int
    epochs: int
    teacher_lr: float
    lr: float
    notes: tuple[str, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the models' input."""
        return Preprocessing(size=self.image_size, crop_fraction=self.crop_fraction, mean=self.mean, std=self.std)

    def settle(self, config: RunConfig) -> RunConfig:
        """``config`` with what was open filled in."""
        return dataclasses.replace(
            config,
            image_size=self.image_size,
            augment=self.augmentation,
            teacher_epochs=self.teacher_epochs,
            epochs=self.epochs,
            teacher_lr=self.teacher_lr,
            lr=self.lr,
        )


def make_plan(
    config: RunConfig, data: ImageData, teacher: str | nn.Module, student: str | nn.Module, observer: Observer
) -> Plan:
    """Decide what is open.  Asks the model hub, at most once a model, where ``auto`` or ``hub`` weights need it."""
    for given in (teacher, student):
        for folder in _artefacts_of(given):
            require_classes(folder, data.classes)
    base = _base_preprocessing(teacher)
    mean, std = _normalization(config, teacher, base)
    size = config.image_size or (base.size if is_given_artefact(teacher) else data.default_size)
    augmentation = config.augment or data.augmentation
    classes = len(data.classes)
    teacher_origin, teacher_why = decide_weights(teacher, config.teacher_weights, classes, size)
    student_origin, student_why = decide_weights(student, config.student_weights, classes, size)
    teacher_epochs, epochs = _teacher_epochs(config, teacher_origin), config.epochs or STUDENT_EPOCHS

    def rate(given: str | nn.Module, origin: str, epochs: int) -> float:
        steps = epochs * (len(data.train) // config.batch_size)
        return peak_rate(lambda: untrained(given, classes, size), origin, steps)

    notes = (
        *(() if is_mutual(config.objective) else _normalisation_notes(config, teacher_origin, teacher_epochs, base)),
        *_size_notes(teacher_origin, teacher_epochs, base.size, size),
        *_scratch_notes({"teacher": teacher_why, "student": student_why}),
        *_label_notes(config),
        *unread_note(config),
        *left_out(config),
    )
    for note in notes:
        observer.note(note)
    return Plan(
        image_size=size,
        crop_fraction=base.crop_fraction if is_given_artefact(teacher) else _crop_fraction(augmentation),
        mean=mean,
        std=std,
        augmentation=augmentation,
        teacher_origin=teacher_origin,
        student_origin=student_origin,
        teacher_epochs=teacher_epochs,
        epochs=epochs,
        # a teacher without epochs of its own may learn together with the student
        teacher_lr=config.teacher_lr or rate(teacher, teacher_origin, teacher_epochs or epochs),
        lr=config.lr or rate(student, student_origin, epochs),
        notes=notes,
    )


def _normalization(config: RunConfig, teacher: str | nn.Module, base: Preprocessing) -> tuple[Triple, Triple]:
    """Mean and standard deviation: as given, otherwise the teacher's.

    Raises:
        InputError: others than those of the images that an artefact was trained on.
    """
    mean, std = config.normalization
    mean, std = mean or base.mean, std or base.std
    if is_given_artefact(teacher) and (mean, std) != (base.mean, base.std):
        raise InputError(
            f"--mean {_listed(mean)} --std {_listed(std)}: {teacher} was trained on images of mean "
            f"{_listed(base.mean)} and standard deviation {_listed(base.std)}.",
            "Leave both out: they are taken from the teacher.",
        )
    return mean, std


def _normalisation_notes(config: RunConfig, origin: str, epochs: int, base: Preprocessing) -> tuple[str, ...]:
    """A teacher that is taken as trained answers rightly for images that are normalised as it knows them."""
    if origin not in ("object", "file") or epochs or None not in config.normalization:
        return ()
    given = [values or own for values, own in zip(config.normalization, (base.mean, base.std), strict=True)]
    mean, std = map(_listed, given)
    return (
        f"The teacher is taken as trained, on images of mean {mean} and standard deviation {std}: where it knows "
        "others, give them with --mean and --std.",
    )


def _size_notes(origin: str, epochs: int, own: int, size: int) -> tuple[str, ...]:
    """A finished teacher answers images of another size less well, and what is kept is held against that."""
    if origin != "artefact" or epochs or own == size:
        return ()
    return (
        f"The teacher was trained on images of {own} pixels and answers those of {size}: its accuracy is another "
        "there; --teacher-epochs trains it on them.",
    )


def _listed(values: Triple) -> str:
    """As ``--mean`` takes them."""
    return ",".join(f"{value:g}" for value in values)


def _scratch_notes(reasons: dict[str, str]) -> tuple[str, ...]:
    """One line for each reason why pre-trained weights could not be had."""
    notes = []
    for reason in dict.fromkeys(filter(None, reasons.values())):
        who = " and ".join(role for role, why in reasons.items() if why == reason)
        verb = "train" if " and " in who else "trains"
        notes.append(f"{reason[0].upper()}{reason[1:]}: {who} {verb} from scratch.")
    return tuple(notes)


def _label_notes(config: RunConfig) -> tuple[str, ...]:
    """Pruning promises a recovery under the teacher; an objective without one does not give it."""
    if not config.prune or not is_labels_alone(config.objective):
        return ()
    return (f"The pruned student recovers on the labels alone: --objective {config.objective} asks no teacher.",)


def _teacher_epochs(config: RunConfig, origin: str) -> int:
    if is_mutual(config.objective):
        return 0  # both networks train together, for --epochs
    if config.teacher_epochs is not None:
        return config.teacher_epochs
    if origin == "file" and config.adapt_head:
        return TEACHER_EPOCHS["hub"]
    return TEACHER_EPOCHS[origin]


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON types."""
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return value


def plan_from_json(value: dict[str, Any]) -> Plan:
    """The inverse of :func:`plan_to_json`; keys of a stage's bookkeeping are passed over."""
    names = {field.name for field in dataclasses.fields(Plan)}
    given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return Plan(**{key: item for key, item in given.items() if key in names})


def is_given_artefact(given: str | nn.Module) -> bool:
    """Did the user name an earlier artefact, or an ensemble of them?"""
    return isinstance(given, str) and is_artefact(member_names(given)[0])


def _artefacts_of(given: str | nn.Module) -> list[Path]:
    names = member_names(given) if isinstance(given, str) else []
    return [Path(name) for name in names if is_artefact(name)]


def _base_preprocessing(given: str | nn.Module) -> Preprocessing:
    """Normalisation that the teacher was made for; ImageNet's where it is not known."""
    if isinstance(given, str):
        _refuse_other_images([name for name in member_names(given) if is_artefact(name)])
        given = member_names(given)[0]
        if is_artefact(given):
            return Preprocessing.from_json(json.dumps(read_description(Path(given))["preprocessing"]))
        architecture = resolve(given)
        config = timm.get_pretrained_cfg(architecture.name, allow_unregistered=True)
        if architecture.kind == "timm" and config is not None:
            return Preprocessing(size=config.input_size[-1], mean=_triple(config.mean), std=_triple(config.std))
    return Preprocessing(size=224)


def _refuse_other_images(artefacts: list[str]) -> None:
    """Raise InputError where members of an ensemble were trained on images of other sizes or normalisations."""
    known = [read_description(Path(folder))["preprocessing"] for folder in artefacts]
    for folder, other in zip(artefacts[1:], known[1:], strict=True):
        if differs := [name for name in other if other[name] != known[0].get(name)]:
            name = differs[0]
            raise InputError(
                f"{folder} was trained on images of {name} {other[name]}, {artefacts[0]} on {known[0].get(name)}.",
                "Name teachers of the same images, or train them together: --teacher NAME,NAME.",
            )


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return (red, green, blue)


def _crop_fraction(augmentation: str) -> float:
    """Random resized crops show objects larger than whole images do; a central crop in validation makes up for it."""
    return 0.875 if augmentation in ("standard", "strong") else 1.0
