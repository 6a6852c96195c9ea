"""What every stage of a run needs: data, preprocessing, device, and the settings with nothing left open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader

from iekd.compress.config import RunConfig
from iekd.compress.data import ImageData, load_data
from iekd.compress.observer import Observer
from iekd.compress.views import Sample, ViewDataset, auto_workers, plain_loader, train_loader
from iekd.deploy import machine, probe
from iekd.errors import EnvironmentMissingError, InputError
from iekd.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Job:
    """One run's surroundings."""

    config: RunConfig
    data: ImageData
    preprocessing: Preprocessing
    augmentation: str
    accelerator: Accelerator
    observer: Observer
    folder: Path
    shared: Path | None = None
    """Folder of what all runs under the same frozen teacher have in common; None: this run is by itself."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        return self.accelerator.device  # type: ignore[no-any-return]

    @property
    def precision(self) -> str:
        """Of training."""
        mixed = self.accelerator.mixed_precision
        return "float32" if mixed == "no" else f"mixed {mixed}"

    @property
    def workers(self) -> int:
        """Processes that load images."""
        return auto_workers(self.data) if self.config.workers is None else self.config.workers

    def train_batches(self, views: int | None = None) -> Any:
        """A function from epoch to loader over augmented views; ``views`` of them recur."""
        dataset = ViewDataset(self.data.train, self.preprocessing, self.augmentation, self.config.seed)

        def batches(epoch: int) -> DataLoader[Sample]:
            return train_loader(
                dataset,
                batch_size=self.config.batch_size,
                epoch=epoch,
                seed=self.config.seed,
                views=views,
                workers=self.workers,
            )

        return batches

    def view_loader(self, view: int) -> DataLoader[Sample]:
        """One augmented view of every training image, in order."""
        dataset = ViewDataset(self.data.train, self.preprocessing, self.augmentation, self.config.seed)
        return plain_loader(dataset, batch_size=self.config.batch_size, workers=self.workers, view=view)

    def val_loader(self) -> DataLoader[Sample]:
        """Validation images in order, as the deployed model will see them."""
        dataset = ViewDataset(self.data.val, self.preprocessing, "none", self.config.seed)
        return plain_loader(dataset, batch_size=max(64, self.config.batch_size), workers=self.workers)

    def val_arrays(self) -> Iterator[tuple[Any, Any]]:
        """The same as pairs of numpy arrays: float32 images (N, 3, H, W) and int64 class indices (N,)."""
        for batch in self.val_loader():
            yield batch.image.numpy(), batch.target.numpy()

    def some_images(self, source: Any, count: int) -> Any:
        """``count`` images (or all, where there are fewer) spread over ``source``: float32 (N, 3, H, W)."""
        chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
        return np.stack([self.preprocessing(source[int(index)][0]) for index in chosen])

    @torch.no_grad()
    def accuracy(self, network: nn.Module, *, mixed: bool = False) -> float:
        """Top-1 accuracy on the validation set, over all processes.

        Args:
            network: on the run's device.
            mixed: in the run's mixed precision, as between epochs; else in float32, as it will be exported.
        """
        network.eval()
        counts = torch.zeros(2, device=self.device)
        for batch in self.accelerator.prepare(self.val_loader()):
            with self.accelerator.autocast() if mixed else contextlib.nullcontext():
                logits = network(batch.image)
            answers = self.accelerator.gather_for_metrics((logits.argmax(1), batch.target))
            counts += torch.tensor([(answers[0] == answers[1]).sum(), len(answers[1])], device=self.device)
        return float(counts[0] / counts[1])


def make_accelerator(config: RunConfig) -> Accelerator:
    """The device and precision that the settings ask for.

    Raises:
        EnvironmentMissingError: CUDA asked for and not there, or fp16, which nothing but a GPU trains in.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise EnvironmentMissingError(
            "--device cuda: torch sees no CUDA device.", "Use --device auto, or see `iekd-compress doctor`."
        )
    on_gpu = cuda and config.device != "cpu"
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if on_gpu else "no"
    if precision == "fp16" and not on_gpu:  # Accelerate would train in float32, and say fp16
        raise EnvironmentMissingError(
            "--mixed-precision fp16 trains on a GPU, and this run has none.",
            "Leave --mixed-precision out: float32 without a GPU, bf16 on one.",
        )
    AcceleratorState._reset_state(
        reset_partial_state=False
    )  # the last run of this process may have had another precision
    return Accelerator(cpu=not on_gpu, mixed_precision=precision)


def emulation(accelerator: Accelerator) -> str | None:
    """What a user should know whose processor has no instructions for the precision that the run trains in."""
    about = probe.read("proc/cpuinfo")
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16" or not about:
        return None
    if any("BF16" in name for name in machine.instruction_sets(about)):
        return None
    return (
        "This processor has no instructions for BF16: it emulates them, which was 5 to 14 times slower than float32 "
        "where it was measured.  Leave --mixed-precision out to train in float32."
    )


def reopen_data(config: RunConfig, otherwise: str) -> ImageData:
    """The data set of a finished run.

    Args:
        config: of the run.
        otherwise: what to do where the run was given a Python object, which no name opens.
    """
    try:
        return open_data(config)
    except InputError as error:
        if not error.message.startswith("unknown data set"):
            raise
        raise InputError(f"the data of this run, {config.data}, was given as a Python object.", otherwise) from error


def open_data(config: RunConfig) -> ImageData:
    """The data set that the settings name."""
    return load_data(
        config.data,
        val_fraction=config.val_fraction,
        seed=0,
        skip_bad_images=config.skip_bad_images,
        limit=config.train_limit,
        val_limit=config.val_limit,
    )
