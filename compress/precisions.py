"""Which precisions a run makes beside fp32, and what making them needs; told before anything is trained."""

from __future__ import annotations

import importlib.util

from iekd.compress.config import RunConfig
from iekd.compress.quantizers.simulated import GRIDS, Grid
from iekd.compress.targets import TARGETS
from iekd.deploy.precision import MIN_SM, check_reachable
from iekd.errors import EnvironmentMissingError, InputError, unknown_name


def precisions_asked(config: RunConfig) -> tuple[str, ...]:
    """Beside fp32, the precisions to make; with ``best`` those of the target for which everything is installed.

    Raises:
        InputError: the target has not the one that was asked for.
    """
    has = tuple(TARGETS[config.target].schemes)
    if config.precision == "fp32":
        return ()
    if config.precision == "best":
        return tuple(name for name in has if _lacking(name, config.target) is None)
    scheme_of(config.precision, config.target, ("fp32", "best"))
    return (config.precision,)


def scheme_of(precision: str, target: str, others: tuple[str, ...] = ()) -> str:
    """The scheme by which ``target`` reaches ``precision``.

    Args:
        precision: its name.
        target: one of ``TARGETS``.
        others: what could have been named instead.

    Raises:
        InputError: the target has not that precision, or there is none of that name.
    """
    schemes = TARGETS[target].schemes
    if precision in schemes:
        return schemes[precision]
    if precision in MIN_SM:  # a precision by its right name: say what the target's processor lacks, if that is known
        check_reachable(precision, target)
        having = [name for name, other in TARGETS.items() if precision in other.schemes]
        instead = f"Choose one of {', '.join((*others, *schemes))}"
        raise InputError(f"{target} has no {precision}.", f"{instead}; {precision} is for {', '.join(having)}.")
    raise unknown_name(f"precision of {target}", precision, (*others, *schemes))


def left_out(config: RunConfig) -> tuple[str, ...]:
    """A line for each precision that ``best`` leaves out, since a library for it is not installed."""
    if config.precision != "best":
        return ()
    lacking = (_lacking(name, config.target) for name in TARGETS[config.target].schemes)
    return tuple(f"{error.message.removesuffix('.')}; it is left out: {error.hint}" for error in lacking if error)


def _lacking(precision: str, target: str) -> EnvironmentMissingError | None:
    """What is said where the library that makes a precision is not installed."""
    needed = _NEEDS.get(TARGETS[target].schemes[precision])
    if not needed or importlib.util.find_spec(needed) is not None:
        return None
    return EnvironmentMissingError(
        f"{precision} for {target} needs {needed}, which is not installed.", _INSTALLS.get(needed, INSTALL)
    )


_NEEDS = {
    "fp16": "onnxconverter_common",
    "bf16": "onnxconverter_common",
    "int8-openvino": "nncf",
    "fp8-tensorrt": "modelopt",
}
INSTALL = "pip install 'iekd-compress[quantize]'"
_INSTALLS = {
    "modelopt": "pip install nvidia-modelopt requests onnx-graphsurgeon lief",
    "onnxconverter_common": "pip install onnxconverter-common",
}


def require_quantizers(config: RunConfig) -> None:
    """Refuse, before anything is trained, precisions that cannot be made.

    Raises:
        InputError: a precision that the target has not, or ``--qat always`` without one that it serves.
        EnvironmentMissingError: what they need is not installed; with ``best``, what any of them needs.
    """
    asked = {precision: TARGETS[config.target].schemes[precision] for precision in precisions_asked(config)}
    wanted = asked or (TARGETS[config.target].schemes if config.precision == "best" else {})
    for precision in wanted:
        if error := _lacking(precision, config.target):
            raise error
    if config.qat != "always":
        return
    if not set(asked.values()) & set(GRIDS):
        raise InputError(
            f"--qat always trains for int8, which --precision {config.precision} of {config.target} does not make.",
            "Add --precision int8 for a target that has it, or leave --qat out.",
        )
    if importlib.util.find_spec("nncf") is None:
        raise EnvironmentMissingError("--qat needs NNCF, which is not installed.", INSTALL)


def grids_to_train(config: RunConfig) -> list[Grid]:
    """Those for which the student may come to be trained: none where that was not asked for, or NNCF is missing."""
    if config.qat == "never" or importlib.util.find_spec("nncf") is None:
        return []
    schemes = TARGETS[config.target].schemes
    return [GRIDS[schemes[precision]] for precision in precisions_asked(config) if schemes[precision] in GRIDS]
