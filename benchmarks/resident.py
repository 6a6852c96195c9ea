"""A data set of small images that lies on the training device whole, augmentation included.

View v of image i is the same whatever the method, the seed, the batch or the number of workers: padding by 4, a random
crop and a random mirror image (He et al. 2016, section 4.2), drawn once for each (image, view).  Seeds share
views because they share the teacher's answers to them; first weights and the order of the images differ between seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iekd.compress.data import load_data
from iekd.errors import InputError

PAD = 4
Batch = tuple[Tensor, Tensor, int]
"""Image numbers (B,), classes (B,), and the view that all of them are shown as."""


@dataclass
class Resident:
    """Images (N, 3, H + 2 * PAD, W + 2 * PAD) uint8, padded in black, and classes (N,), on one device."""

    images: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor
    shown: int | None = None
    """Height and width that views are enlarged to; as they are when None."""
    _drawn: tuple[int, Tensor] | None = field(default=None, repr=False)
    """The last view that was asked for, and its draws: a training asks for one after the other."""

    @classmethod
    def load(cls, images: Any, targets: Any, device: torch.device, shown: int | None = None) -> Resident:
        """From uint8 images (N, H, W, 3) and classes (N,)."""
        maps = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        padded = torch.nn.functional.pad(maps, (PAD, PAD, PAD, PAD)).to(device)
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
        return cls(padded, torch.from_numpy(targets).to(device), mean, std, shown)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def size(self) -> int:
        """Height and width of a view."""
        return self.shown or self.stored

    @property
    def stored(self) -> int:
        """Height and width of the images themselves, without their padding."""
        return self.images.shape[-1] - 2 * PAD

    def view(self, indices: Tensor, view: int | None) -> Tensor:
        """Normalised float images (B, 3, H, W); view None is not augmented."""
        device, count = self.images.device, len(indices)
        if view is None:
            offsets = torch.full((2, count), PAD, device=device)
            mirrored = torch.zeros(count, dtype=torch.bool, device=device)
        else:
            if self._drawn is None or self._drawn[0] != view:
                self._drawn = view, self._draw(view).to(device)
            drawn = self._drawn[1][:, indices]
            offsets, mirrored = drawn[:2], drawn[2] > PAD
        steps = torch.arange(self.stored, device=device)
        rows = offsets[0][:, None] + steps
        columns = offsets[1][:, None] + torch.where(mirrored[:, None], self.stored - 1 - steps, steps)
        crop = self.images[indices[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        maps = (crop.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        if self.size != self.stored:
            maps = torch.nn.functional.interpolate(maps, size=self.size, mode="bilinear", antialias=True)
        return maps.contiguous(memory_format=torch.channels_last)

    def _draw(self, view: int) -> Tensor:
        """Offsets 0..8 of rows and columns, and a mirror above 4 of 0..9: (3, N), a function of the view alone."""
        generator = torch.Generator().manual_seed(1_000_003 * (view + 1))
        offsets = torch.randint(0, 2 * PAD + 1, (2, len(self)), generator=generator)
        return torch.cat([offsets, torch.randint(0, 2 * PAD + 2, (1, len(self)), generator=generator)])

    def epoch(self, number: int, batch: int, seed: int, views: int | None) -> Epoch:
        """Every image once; the order follows from (seed, number) alone."""
        return Epoch(self, self.order(number, seed), batch, number if views is None else number % views)

    def order(self, number: int, seed: int) -> Tensor:
        """The image numbers in the order of epoch ``number``."""
        generator = torch.Generator().manual_seed(7919 * seed + number)
        return torch.randperm(len(self), generator=generator).to(self.targets.device)


@dataclass
class Epoch:
    """The batches of one epoch, as the trainer takes them; a last, smaller batch is left out."""

    data: Resident
    order: Tensor
    batch: int
    view: int

    def __len__(self) -> int:
        return len(self.order) // self.batch

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self) * self.batch, self.batch):
            indices = self.order[start : start + self.batch]
            yield indices, self.data.targets[indices], self.view


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def held_out(everything: Resident, used: Resident, count: int) -> Resident:
    """``count`` images of ``everything`` that are not among ``used``, nor the same as one of them; always the same.

    Raises:
        InputError: fewer are left.
    """
    taken = {image.tobytes() for image in used.images.cpu().numpy()}
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()
    images = everything.images.cpu().numpy()
    free = [number for number in order if images[number].tobytes() not in taken][:count]
    if len(free) < count:
        raise InputError(
            f"--held-out {count}: {len(free)} images are left that no student is trained on.",
            "Hold out fewer, or take a recipe that trains on a part of them.",
        )
    chosen = torch.tensor(free, device=everything.targets.device)
    return replace(everything, images=everything.images[chosen], targets=everything.targets[chosen], _drawn=None)


def load_split(
    name: str,
    cache: Path,
    limit: int | None,
    val_limit: int | None,
    device: torch.device,
    shown: int | None = None,
) -> tuple[Resident, Resident]:
    """Training and validation images of a data set as ``--data`` names it, decoded once into ``cache``."""
    which = hashlib.sha256(name.encode()).hexdigest()[:12]  # a name may be a path
    file = cache / f"images-{which}-{limit or 'all'}-{val_limit or 'all'}.npz"
    if not file.exists():
        data = load_data(name, limit=limit, val_limit=val_limit)
        arrays: dict[str, Any] = {}
        for split, source in (("train", data.train), ("val", data.val)):
            pairs = [source[number] for number in range(len(source))]
            arrays[split] = np.stack([np.asarray(image.convert("RGB")) for image, _ in pairs])
            arrays[f"{split}_targets"] = np.array([target for _, target in pairs], dtype=np.int64)
        temporary = file.with_suffix(".tmp.npz")
        np.savez(temporary, **arrays)
        temporary.replace(file)
    with np.load(file) as arrays_on_disk:
        loaded = {key: arrays_on_disk[key] for key in arrays_on_disk.files}
    return (
        Resident.load(loaded["train"], loaded["train_targets"], device, shown),
        Resident.load(loaded["val"], loaded["val_targets"], device, shown),
    )
