from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from iekd.compress.teacher_cache import AnswerCache, bytes_needed

SHAPES = ((3,), (2, 4, 4))


class Teacher:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, indices: Tensor, views: Tensor) -> tuple[Tensor, ...]:
        self.asked += 1
        base = (indices * 10 + views).float()
        return base[:, None].expand(-1, 3) / 7, base[:, None, None, None].expand(-1, 2, 4, 4) / 3


def ask(cache: AnswerCache, teacher: Teacher, indices: list[int], view: int) -> tuple[Tensor, ...]:
    index, views = torch.tensor(indices), torch.full((len(indices),), view)
    return cache(index, views, lambda: teacher(index, views))


def test_a_view_is_asked_for_once(tmp_path: Path) -> None:
    cache, teacher = AnswerCache(tmp_path, SHAPES, 6, 2), Teacher()
    first = ask(cache, teacher, [0, 3, 5], 1)
    again = ask(cache, teacher, [5, 0], 1)
    assert teacher.asked == 1
    assert torch.equal(again[1], first[1][[2, 0]])
    ask(cache, teacher, [0, 3, 5], 0)
    assert teacher.asked == 2


def test_first_and_later_answers_are_the_same_numbers(tmp_path: Path) -> None:
    """Otherwise a resumed run, which reads, would differ from an undisturbed one, which computes."""
    cache, teacher = AnswerCache(tmp_path, SHAPES, 6, 1), Teacher()
    computed, read = ask(cache, teacher, [1, 2], 0), ask(cache, teacher, [1, 2], 0)
    assert all(torch.equal(a, b) for a, b in zip(computed, read, strict=True))
    assert computed[0].dtype == torch.float32
    assert computed[0][0, 0] == pytest.approx(10 / 7, rel=1e-3)


def test_answers_outlive_the_process(tmp_path: Path) -> None:
    teacher = Teacher()
    ask(AnswerCache(tmp_path, SHAPES, 6, 1), teacher, [4], 0)
    ask(AnswerCache(tmp_path, SHAPES, 6, 1), teacher, [4], 0)
    assert teacher.asked == 1


def test_another_layout_starts_anew(tmp_path: Path) -> None:
    teacher = Teacher()
    ask(AnswerCache(tmp_path, SHAPES, 6, 1), teacher, [4], 0)
    ask(AnswerCache(tmp_path, SHAPES, 7, 1), teacher, [4], 0)
    assert teacher.asked == 2


def test_a_batch_that_is_partly_known_is_computed_whole(tmp_path: Path) -> None:
    """Numerics may depend on the batch, so what is stored must not depend on where a run was killed."""
    cache, teacher = AnswerCache(tmp_path, SHAPES, 6, 1), Teacher()
    ask(cache, teacher, [1], 0)
    answers = ask(cache, teacher, [1, 2], 0)
    assert teacher.asked == 2
    assert answers[0][1, 0] == pytest.approx(20 / 7, rel=1e-3)


def test_size_is_known_beforehand(tmp_path: Path) -> None:
    AnswerCache(tmp_path, SHAPES, 6, 2)
    written = sum(file.stat().st_size for file in tmp_path.glob("answer*.npy"))
    assert 0 < written - bytes_needed(SHAPES, 6, 2) <= 256


@pytest.mark.parametrize("gone", ["answer0.npy", "answer1.npy", "filled.npy"])
def test_a_file_that_was_deleted_is_asked_for_anew_and_never_read_as_zeros(gone: str, tmp_path: Path) -> None:
    teacher = Teacher()
    before = ask(AnswerCache(tmp_path, SHAPES, 6, 1), teacher, [4], 0)
    (tmp_path / gone).unlink()
    after = ask(AnswerCache(tmp_path, SHAPES, 6, 1), teacher, [4], 0)
    assert teacher.asked == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert bool((after[0] > 1).all())
