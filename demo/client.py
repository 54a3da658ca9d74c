"""ComfyUI's HTTP and WebSocket API as its page uses it: queue a prompt, follow it, fetch what it made."""

import json
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import requests
import websocket

Prompt = dict[str, dict[str, Any]]
_ENDS = {"execution_success", "execution_error", "execution_interrupted"}
_TEXT = 3  # BinaryEventTypes.TEXT of ComfyUI's protocol.py
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Event:
    """One WebSocket message."""

    type: str
    data: dict[str, Any]


@dataclass
class Run:
    """A prompt that has come to an end.

    Attributes:
        end: `execution_success`, `execution_error` or `execution_interrupted`.
        events: all messages about it, in order.
        outputs: what its output nodes reported, by node id.
    """

    prompt_id: str
    end: str = ""
    events: list[Event] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def executed(self) -> list[str]:
        """Ids of the nodes that ran, in order."""
        return [event.data["node"] for event in self.events if event.type == "executing" and event.data["node"]]

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes whose output was still there."""
        return {node for event in self.events if event.type == "execution_cached" for node in event.data["nodes"]}

    @property
    def error(self) -> str:
        """What the failing node said; empty if none failed."""
        failed = [event for event in self.events if event.type == "execution_error"]
        return str(failed[0].data["exception_message"]) if failed else ""

    def texts(self, node: str) -> list[str]:
        """What a node showed on its face."""
        texts = (event.data for event in self.events if event.type == "progress_text")
        return [data["text"] for data in texts if data["node"] == node]


class RejectedError(RuntimeError):
    """The server did not take the prompt."""


class Client:
    """One connection to a server.

    Args:
        url: the server's, such as `http://127.0.0.1:8188`.
        timeout: seconds without any message after which waiting ends.
    """

    def __init__(self, url: str, *, timeout: float = 120) -> None:
        self.url = url
        self.client_id = uuid.uuid4().hex
        self.timeout = timeout
        self._socket = websocket.create_connection(
            f"{url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}", timeout=timeout
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> Any:
        return self._checked(requests.get(f"{self.url}{path}", timeout=self.timeout)).json()

    def get_text(self, path: str) -> str:
        response = self._checked(requests.get(f"{self.url}{path}", timeout=self.timeout))
        response.encoding = "utf-8"
        return response.text

    def interrupt(self) -> None:
        self._checked(requests.post(f"{self.url}/interrupt", timeout=self.timeout))

    def set(self, setting: str, value: object) -> None:
        """A setting of ComfyUI's page."""
        self._checked(requests.post(f"{self.url}/settings/{setting}", json=value, timeout=self.timeout))

    def free(self) -> None:
        """Unload all models and drop all cached outputs before the next prompt."""
        body = {"unload_models": True, "free_memory": True}
        self._checked(requests.post(f"{self.url}/free", json=body, timeout=self.timeout))

    def run(self, prompt: Prompt, on_event: Callable[[Event], None] = lambda _: None) -> Run:
        """Queue a prompt and follow it to its end.

        Raises:
            RejectedError: the server found it invalid; the message says where.
        """
        body = {"prompt": prompt, "client_id": self.client_id}
        response = requests.post(f"{self.url}/prompt", json=body, timeout=self.timeout)
        if response.status_code != requests.codes.ok:
            raise RejectedError(_reasons(response.json()))
        run = Run(response.json()["prompt_id"])
        for event in self._events():
            if event.data.get("prompt_id", run.prompt_id) != run.prompt_id:
                continue
            run.events.append(event)
            on_event(event)
            if event.type in _ENDS:
                break
        run.end = run.events[-1].type
        # Not from /history, which the server writes only after it has said that the prompt ended.
        run.outputs = {event.data["node"]: event.data["output"] for event in run.events if event.type == "executed"}
        return run

    def files(self, run: Run, node: str) -> list[bytes]:
        """Contents of the files an output node saved."""
        saved = [file for files in run.outputs[node].values() for file in files if isinstance(file, dict)]
        urls = [f"{self.url}/view?{urlencode(file)}" for file in saved]
        return [self._checked(requests.get(url, timeout=self.timeout)).content for url in urls]

    def _events(self) -> Iterator[Event]:
        while True:
            message = self._socket.recv()
            if isinstance(message, str):
                content = json.loads(message)
                yield Event(content["type"], content["data"])
            elif struct.unpack_from(">I", message)[0] == _TEXT:
                (length,) = struct.unpack_from(">I", message, _LENGTH_BYTES)
                node, text = message[2 * _LENGTH_BYTES :][:length], message[2 * _LENGTH_BYTES + length :]
                yield Event("progress_text", {"node": node.decode(), "text": text.decode()})

    @staticmethod
    def _checked(response: requests.Response) -> requests.Response:
        response.raise_for_status()
        return response


def _reasons(answer: dict[str, Any]) -> str:
    lines = [answer["error"]["message"]]
    for node, report in answer.get("node_errors", {}).items():
        lines += [f"node {node} ({report['class_type']}): {e['message']}: {e['details']}" for e in report["errors"]]
    return "\n".join(lines)
