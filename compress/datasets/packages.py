"""Packages that only some kinds of data need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from iekd.errors import EnvironmentMissingError


def need(package: str, module: str, spec: str) -> Any:
    """The imported ``module`` of ``package``.

    Args:
        package: as pip knows it.
        module: as Python knows it.
        spec: the data set that needs it.

    Raises:
        EnvironmentMissingError: not installed; says the pip command.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EnvironmentMissingError(
            f"data '{spec}' needs the package {package}: {error}.", f"pip install {package}"
        ) from error
