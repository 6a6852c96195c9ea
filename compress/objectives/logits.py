"""Terms on logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Softened cross-entropy's KL divergence, times the squared temperature (Hinton et al. 2015, section 2).

    Args:
        student: logits (B, classes).
        teacher: logits (B, classes), no gradient.
        temperature: softens both; the squared factor keeps the gradient's size.

    Returns:
        Scalar, mean over the batch.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
