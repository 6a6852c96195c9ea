"""How a board is reached: the system's own ssh and scp with their options, and what ssh says where it fails."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from iekd.errors import EnvironmentMissingError, IekdError, InputError

EXIT_SSH = 255
"""What ssh ends with for reasons of its own; any other status is that of the program on the board."""


@dataclass(frozen=True)
class Board:
    """How to reach a board.

    Args:
        host: as ssh takes it: ``user@board`` or a name of ``~/.ssh/config``.
        port: of its ssh; None: as ssh is configured.
        identity: private key; None: as ssh is configured.
        options: further ``-o`` options of ssh, such as ``ProxyJump=gate``.
        python: the board's Python, 3.10 or later.
    """

    host: str
    port: int | None = None
    identity: Path | None = None
    options: tuple[str, ...] = ()
    python: str = "python3"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.@:%\[\]-]+", self.host) or self.host.startswith("-"):
            raise InputError(f"'{self.host}' is not a host.", "Give user@board.")

    def command(self, program: str) -> list[str]:
        """``ssh`` or ``scp`` with all options, up to the host."""
        path = shutil.which(program)
        if path is None:
            raise EnvironmentMissingError(f"{program} is not installed.", "sudo apt-get install openssh-client")
        keepalive = ("ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")
        options = [part for option in ("BatchMode=yes", *self.options, *keepalive) for part in ("-o", option)]
        if self.port is not None:
            options += ["-p" if program == "ssh" else "-P", str(self.port)]
        if self.identity is not None:
            options += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        return [path, *options]


def connection_error(board: Board, told: str) -> IekdError:
    """What ssh said, as one message."""
    host, last = board.host, last_line(told)
    name = host.rpartition("@")[2]
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in told:
        message = f"the host key of {host} is not the one that this machine knows."
        return EnvironmentMissingError(message, f"If the board was set up anew: ssh-keygen -R {name}, then ssh {host}.")
    if "Host key verification failed" in told:
        message = f"the host key of {host} is not known here."
        return EnvironmentMissingError(message, f"Connect once by hand and compare its fingerprint: ssh {host}")
    if "Permission denied" in told:
        message = f"{host} does not let us in without a password."
        return EnvironmentMissingError(message, f"ssh-copy-id {host}, or give --identity FILE.")
    return EnvironmentMissingError(
        f"cannot reach {host} ({last or 'ssh says nothing'}).", "Check its name, its port and that it is on."
    )


def last_line(text: str) -> str:
    """The last line that is not empty, or nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
