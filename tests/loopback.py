"""A board on loopback: a real sshd with keys of its own, and a Python with numpy and ONNX Runtime and nothing else."""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import importlib.util
import os
import resource
import shutil
import socket
import subprocess
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SSHD = "/usr/sbin/sshd"


def missing() -> str:
    """Why there can be no board here, or nothing."""
    if not Path(SSHD).exists() or not all(map(shutil.which, ("ssh", "scp", "ssh-keygen"))):
        return "no sshd on this machine: apt-get install openssh-server openssh-client"
    return ""


@dataclass(frozen=True)
class Loopback:
    """How to reach the board, for :func:`iekd.deploy.remote.deploy`."""

    folder: Path
    port: int

    @property
    def host(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    @property
    def identity(self) -> Path:
        return self.folder / "user_key"

    @property
    def options(self) -> tuple[str, ...]:
        return (f"UserKnownHostsFile={self.folder / 'known_hosts'}", "GlobalKnownHostsFile=/dev/null")


def make_keys(folder: Path) -> None:
    """Keys of the host and of the user, and what each must know of the other."""
    for name in ("host_key", "user_key", "stranger_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")


@contextlib.contextmanager
def board(folder: Path, *, most_bytes: int | None = None) -> Iterator[Loopback]:
    """Run sshd until the block ends.

    Args:
        folder: with the keys.
        most_bytes: that any file may grow to: a disk that is full.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
    (folder / "home").mkdir(exist_ok=True)  # not the developer's, whose start-up files may be slow
    config = folder / f"sshd_config_{port}"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host_key'}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        f"SetEnv HOME={folder / 'home'}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, separates its privileges

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    with open(folder / "sshd.log", "ab") as log:
        command = [SSHD, "-D", "-e", "-f", str(config)]
        process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=limit)
        try:
            _await(port, process, folder / "sshd.log")
            yield Loopback(folder, port)
        finally:
            process.terminate()
            process.wait(timeout=10)


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"sshd did not start: {log.read_text()}")


def make_python(folder: Path) -> Path:
    """A virtual environment with this one's numpy and ONNX Runtime, by links, and nothing else; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python3*/site-packages"))
    for name in ("numpy", "onnxruntime"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        home = Path(spec.origin).parent
        information = Path(str(importlib.metadata.distribution(name)._path))  # type: ignore[attr-defined]
        for source in (home, information, home.with_name(f"{name}.libs")):
            if source.exists():
                (packages / source.name).symlink_to(source)
    return folder / "bin" / "python"
