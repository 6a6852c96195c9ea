"""iekd-compress: a timm teacher goes in, a file that runs on the target comes out, with the proof of what was kept.

Importing this package is cheap: torch is loaded when a job starts.

    >>> import iekd
    >>> report = iekd.run(teacher="resnet50", student="mobilenet")     # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "run"]

if TYPE_CHECKING:
    from iekd.compress.pipeline import run


def __getattr__(name: str) -> Any:
    if name == "run":
        from iekd.compress.pipeline import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
