"""What can go wrong on a device, with what to do next.  ``iekd.deploy.engine`` turns these into the host's errors."""

from __future__ import annotations

from typing import TypeVar

Kept = TypeVar("Kept", bound=Exception)


class DeviceError(Exception):
    """A problem with a message for the user.

    Args:
        message: what is wrong, and where.
        hint: what to do next; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}  {self.hint}" if self.hint else self.message


class DeviceInputError(DeviceError):
    """What was given cannot be used: a file, a setting, a batch of images."""


class DeviceMissingError(DeviceError):
    """A part of the environment is missing or too old: GPU, driver, CUDA runtime, TensorRT."""


class BuildError(DeviceError):
    """TensorRT did not build the engine; the message says why."""


class OutOfMemoryError(DeviceError):
    """The device's memory does not hold it."""


def detached(error: Kept) -> Kept:
    """``error`` without traceback and cause, for keeping: their frames hold what failed, such as a builder's memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
