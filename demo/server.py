"""A ComfyUI server in a process of its own: started on a free port of 127.0.0.1, seen to answer, and stopped again."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import requests
import yaml

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
START_SECONDS = 180
STOP_SECONDS = 20
LOG_TAIL = 25
MODEL_FOLDERS = ("checkpoints", "clip_vision", "ipadapter")


class ServerError(RuntimeError):
    """The server did not start, or ended by itself."""


class ComfyServer:
    """ComfyUI with this pack and, unless told, no other custom node.

    Args:
        folder: where its input, output, temp and user folders, its database and its log lie.
        models: a models folder that comes before ComfyUI's own; None leaves ComfyUI with its own.
        comfyui: the ComfyUI to run; the one that COMFYUI_PATH names by default.
        packs: a folder of more custom nodes, to load as well.
        options: more command-line options.
    """

    def __init__(
        self,
        folder: Path,
        *,
        models: Path | None = None,
        comfyui: Path | None = None,
        packs: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder.resolve()
        self.models = models
        self.comfyui = comfyui or Path(os.environ["COMFYUI_PATH"])
        self.packs = packs
        self.options = tuple(options)
        self.port = 0
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def pack(self) -> str:
        """Name of the folder in custom_nodes that is this checkout.

        Raises:
            ServerError: there is none.
        """
        for entry in (self.comfyui / "custom_nodes").iterdir():
            if entry.exists() and entry.samefile(ROOT):
                return entry.name
        raise ServerError(f"{ROOT} is not linked into {self.comfyui}/custom_nodes: run scripts/comfyui.sh")

    def __enter__(self) -> "ComfyServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerError: it did not; the message ends with its log.
        """
        for name in ("input", "output", "user"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.comfyui,
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it; nothing happens if it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait(self) -> None:
        """Wait until it ends by itself.

        Raises:
            ServerError: it did.
        """
        assert self._process is not None
        code = self._process.wait()
        raise ServerError(f"ComfyUI ended with exit code {code}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:])

    def command(self) -> list[str]:
        """What is run."""
        command = [sys.executable, str(self.comfyui / "main.py")]
        command += ["--listen", HOST, "--port", str(self.port), "--disable-api-nodes", "--disable-auto-launch"]
        others = [entry.name for entry in self.packs.iterdir()] if self.packs else []
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", self.pack, *others]
        for name in ("input", "output", "user"):
            command += [f"--{name}-directory", str(self.folder / name)]
        command += ["--temp-directory", str(self.folder)]  # ComfyUI appends temp/
        command += ["--database-url", f"sqlite:///{self.folder / 'comfyui.db'}"]
        if self.models or self.packs:
            command += ["--extra-model-paths-config", str(self._write_paths())]
        return [*command, *self.options]

    def _write_paths(self) -> Path:
        paths: dict[str, dict[str, object]] = {}
        if self.models:
            base = {"base_path": str(self.models.resolve()), "is_default": True}
            paths["ipadapter_studio"] = base | {name: name for name in MODEL_FOLDERS}
        if self.packs:
            paths["packs"] = {"custom_nodes": str(self.packs.resolve())}
        config = self.folder / "extra_model_paths.yaml"
        config.write_text(yaml.safe_dump(paths), encoding="utf-8")
        return config

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ServerError(f"ComfyUI ended with exit code {self._process.returncode}:\n{self.log_tail()}")
            try:
                requests.get(f"{self.url}/system_stats", timeout=5).raise_for_status()
            except requests.RequestException:
                time.sleep(0.25)
            else:
                return
        raise ServerError(f"ComfyUI did not answer within {START_SECONDS} s:\n{self.log_tail()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the calling Python or its tests; nothing is fetched."""
    kept = {
        name: value for name, value in inherited.items() if not name.startswith(("PYTHON", "PYTEST", "COMFYUI", "COV"))
    }
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
