"""How an engine is built.  Precision is not here: it is written into the ONNX file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import DeviceInputError

Range = tuple[int, int, int]
"""Smallest, most frequent (tuned for) and largest size."""


@dataclass(frozen=True)
class BuildSettings:
    """Settings of one build; each is part of the cache's key."""

    batch: Range = (1, 1, 8)
    height: Range | None = None
    """Only for files whose image height is open."""
    width: Range | None = None
    workspace_mib: int | None = None
    """Scratch memory that a layer may use; TensorRT's default, all of the device's, when None."""
    tactic_mib: int | None = None
    """Device memory that trying out one tactic may use; TensorRT's default when None."""
    optimization_level: int = 3
    """0 builds fastest, 5 searches longest; 3 is TensorRT's default."""
    tf32: bool = True
    """Let float32 layers multiply in TF32, as TensorRT and trtexec do unless told otherwise."""
    sparse: bool = False
    """Look for 2:4 sparse weights and use them."""
    version_compatible: bool = False
    """Loads in later TensorRT versions of the same major one, at some cost in speed."""
    hardware_compatible: bool = False
    """Loads on any GPU of SM 8.0 or later under this kind of system and processor, at some cost in speed."""
    strip_plan: bool = False
    """Leave the weights out of the engine; they are put back from the ONNX file when it is loaded."""
    dla_core: int | None = None
    """Run on that Deep Learning Accelerator, with the GPU for layers that it cannot run."""

    def check(self) -> None:
        """Raise DeviceInputError for values that no build can use."""
        for name in ("batch", "height", "width"):
            sizes = getattr(self, name)
            if sizes is not None and not 0 < sizes[0] <= sizes[1] <= sizes[2]:
                raise DeviceInputError(
                    f"{name} {sizes} is not smallest, usual, largest.", "Give three rising sizes, such as 1,1,8."
                )
        if not 0 <= self.optimization_level <= 5:
            raise DeviceInputError(f"optimisation level {self.optimization_level} is not one of 0 to 5.", "3 is usual.")
        for name in ("workspace_mib", "tactic_mib"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise DeviceInputError(f"{name} is {limit}.", "Give the limit in MiB, at least 1.")
        if self.dla_core is not None and not self.fixed:
            raise DeviceInputError(
                "a Deep Learning Accelerator takes one size only.", "Give batch (and image sizes) as N,N,N."
            )

    def covering(self, batch: int) -> BuildSettings:
        """These settings, or where they end below ``batch`` the same with batches up to it, tuned for it."""
        return self if batch <= self.batch[2] else replace(self, batch=(self.batch[0], batch, batch))

    @property
    def fixed(self) -> bool:
        """True when every range is a single size."""
        return all(sizes is None or sizes[0] == sizes[2] for sizes in (self.batch, self.height, self.width))

    def as_dict(self) -> dict[str, Any]:
        """Names and values, as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
