"""Pre-trained weights from the hub: asked for once, briefly.

Whether the hub can be reached is found out by one small request with a deadline of its own, before timm is let loose on
the download: timm and huggingface_hub retry for minutes behind a closed network.
"""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from typing import Any

import timm
from torch import nn

from iekd.errors import EnvironmentMissingError, InputError
from iekd.models.registry import Architecture, timm_arguments

DEADLINE_SECONDS = 8.0
"""For finding out whether the hub answers; name resolution included."""


def load_pretrained(architecture: Architecture, classes: int, image_size: int) -> nn.Module:
    """A timm network with pre-trained weights and, where the class count differs, a fresh classifier.

    Raises:
        InputError: the model is not timm's, or has no pre-trained weights.
        EnvironmentMissingError: the hub is out of reach.
    """
    config = (
        timm.get_pretrained_cfg(architecture.name, allow_unregistered=True) if architecture.kind == "timm" else None
    )
    if config is None or not config.has_weights:
        raise InputError(
            f"there are no pre-trained weights for {architecture.name}.",
            "Use weights `scratch`, or a FILE of your own.",
        )
    problem = unreachable(config.hf_hub_id, getattr(config, "hf_hub_filename", None))
    if problem:
        raise EnvironmentMissingError(
            f"the model hub is out of reach ({problem}).", "Use weights `scratch`, a FILE of your own, or connect."
        )
    arguments: dict[str, Any] = {**timm_arguments(architecture.name, image_size), **architecture.arguments}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = timm.create_model(architecture.name, pretrained=True, num_classes=classes, **arguments)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentMissingError(
            f"the weights of {architecture.name} could not be fetched ({first}).", "Use weights `scratch` or a FILE."
        ) from error
    return network


@functools.cache
def unreachable(repository: str | None, filename: str | None = None) -> str:
    """Why the weights of ``repository`` cannot be had, or an empty string; asked once a process and repository.

    Weights already in the local cache count as reachable.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if not repository:
        return "timm names no hub repository for it"
    names = [filename] if filename else [constants.SAFETENSORS_SINGLE_FILE, constants.PYTORCH_WEIGHTS_NAME]
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return ""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str] = []
    worker = threading.Thread(target=lambda: answer.append(_ask(repository)), daemon=True)
    worker.start()
    worker.join(DEADLINE_SECONDS)
    return answer[0] if answer else f"no answer within {DEADLINE_SECONDS:.0f} s"


def _ask(repository: str) -> str:
    """One request, never repeated.  Any answer of the server, an error status too, means that it can be reached."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    address = f"{constants.ENDPOINT}/{repository}/resolve/main/config.json"
    logging.getLogger("httpx").setLevel(logging.WARNING)
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code in (401, 403, 404, 405) else f"it answers {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
