"""Terms on logits, as pure functions of (student, teacher, targets, temperature).

Shapes: logits (B, classes), targets (B,) int64; each returns a scalar, the mean over the batch, in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_SPREAD = 1e-3
"""Of probabilities, as a share of their size: 10,000 times their rounding.  A student that spreads its own by less, as
one with a fresh classifier of zeros does, has no direction to correlate with, and without a floor gradients of 1e7."""
_LEAST_DEVIATION = 1e-3
"""Of an image's logits, likewise: the published divisor, deviation + 1e-7, has gradients of 1e6 there."""


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened predictions, times the squared temperature (Hinton et al. 2015, section 2).

    Args:
        student: logits (B, classes).
        teacher: logits (B, classes), no gradient.
        temperature: softens both; the squared factor keeps the gradient's size.
    """
    return temperature**2 * _kl(_log_softmax(teacher, temperature), _log_softmax(student, temperature))


def softened_kl(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``kd``: :func:`distillation_loss`; the targets play no part."""
    return distillation_loss(student, teacher, temperature)


def decoupled(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, *, alpha: float = 1.0, beta: float = 2.0
) -> Tensor:
    """``dkd``: target class against the rest, and the rest among themselves, weighted apart (Zhao et al. 2022, eq. 7).

    The weights are the authors' for ResNet-56 to ResNet-20 (other pairs: beta 6 or 8).  Their warm-up of the term over
    20 epochs is left to the learning rate's.  Three classes or more: with two, the second part is zero.
    """
    target = F.one_hot(targets, student.shape[1]).bool()
    parts = []
    for logits in (teacher, student):
        log_p = _log_softmax(logits, temperature)
        log_rest = torch.logsumexp(log_p.masked_fill(target, -torch.inf), dim=1)
        # The target's place among the others is 0 on both sides and adds nothing: picking it out would wait for a GPU.
        others = (log_p - log_rest[:, None]).masked_fill(target, 0)
        parts.append((torch.stack([log_p.gather(1, targets[:, None])[:, 0], log_rest], 1), others))
    (teacher_binary, teacher_others), (student_binary, student_others) = parts
    target_part, other_part = _kl(teacher_binary, student_binary), _kl(teacher_others, student_others)
    return temperature**2 * (alpha * target_part + beta * other_part)


def correlation(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, *, beta: float = 2.0, gamma: float = 2.0
) -> Tensor:
    """``dist``: Pearson correlation over the classes of an image, and over the images of a class (Huang et al. 2022).

    Eq. 9 and 10; beta and gamma as published for ImageNet.  The published temperature is 1, on CIFAR-100 4.  With two
    classes the first part is 0 or 2 an image and has no gradient; the second, over the images, then teaches alone.
    """
    p, q = (F.softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    inter, intra = 1 - _pearson(p, q).mean(), 1 - _pearson(p.t(), q.t()).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def standardised(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``lskd``: KD of logits brought to mean 0 and standard deviation 1 an image (Sun et al. 2024, algorithm 1).

    Three classes or more: two standardised logits are the same for every image but for their order.  Weight 9 and
    temperature 2 are those of the authors' commands for CIFAR-100.
    """
    return distillation_loss(_standardise(student), _standardise(teacher), temperature)


def asymmetric(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, *, wrong: float = 0.75) -> Tensor:
    """``ats``: the teacher's right class softened more than its wrong ones (Li et al. 2022, eq. 8).

    Args:
        student: logits, taken at temperature 1 as the authors do.
        teacher: logits.
        targets: the right classes.
        temperature: of the right class.
        wrong: temperature of the wrong classes, as a share of ``temperature``.
    """
    target = F.one_hot(targets, student.shape[1]).bool()
    temperatures = torch.where(target, temperature, wrong * temperature)
    return _kl(F.log_softmax(teacher.float() / temperatures, dim=1), _log_softmax(student, 1.0))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits.float() / temperature, dim=1)


def _kl(log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """KL divergence of log-probabilities (B, n), mean over the batch."""
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row of ``a`` with the same row of ``b``; nearer to 0 where a row hardly varies."""
    return (_centred_unit(a) * _centred_unit(b)).sum(1)


def _centred_unit(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    least = (_LEAST_SPREAD * rows.detach().norm(dim=1, keepdim=True)).clamp(min=1e-8)
    return centred / torch.maximum(centred.norm(dim=1, keepdim=True), least)


def _standardise(logits: Tensor) -> Tensor:
    logits = logits.float()
    spread = logits.std(1, keepdim=True).clamp(min=_LEAST_DEVIATION)
    return (logits - logits.mean(1, keepdim=True)) / (spread + 1e-7)
