"""Settings read: from values by name or from a YAML file, checked, and written back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from iekd.compress.config import CHOICES, RunConfig, flag, options
from iekd.errors import InputError, unknown_name


def make_config(values: dict[str, Any]) -> RunConfig:
    """A checked configuration; keys with value None are left at their defaults.

    Raises:
        InputError: unknown key, wrong type, value out of range or not among the choices.
    """
    from pydantic import TypeAdapter, ValidationError

    names = [field.name for field in dataclasses.fields(RunConfig)]
    for key in values:
        if key not in names:
            raise unknown_name("setting", key, names)
    given = {key: value for key, value in values.items() if value is not None}
    for key, what in (("teacher", "timm name"), ("student", "timm name")):
        if key not in given:
            raise InputError(f"no {key} given.", f"Add --{key} NAME ({what}; `iekd-compress models` lists some).")
    try:
        config: RunConfig = TypeAdapter(RunConfig).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise InputError(
            f"{flag(key)} {given.get(key)!r}: {first['msg']}.", f"It takes: {options()[key].help}"
        ) from error
    for key, choices in CHOICES.items():
        value = getattr(config, key)
        if value is not None and value not in choices:
            raise unknown_name(flag(key), value, choices)
    _check_texts(config)
    return config


def _check_texts(config: RunConfig) -> None:
    _ = config.max_latency_ms, config.taps, config.teacher_taps, config.normalization  # raise on bad text


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        InputError: missing, not YAML, or not a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no configuration file at {path}.", "Check the path.") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"cannot read {path}: {detail}.", "It must be YAML, one `setting: value` a line.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a mapping.", "Write one `setting: value` a line.")
    return {str(key).replace("-", "_"): _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> Any:
    """A list, which YAML's users write where the command line takes commas, as that text."""
    return ",".join(str(item) for item in value) if isinstance(value, list) else value


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML, every setting spelled out."""
    import yaml

    return str(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
