"""Graphs through ComfyUI's own validation and executor, in this process; and what was run and what was cached."""

import asyncio
import importlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Graph = dict[str, dict[str, Any]]
NAME, SINK = "TestsFileName", "TestsSink"  # nodes that tests register


class FileName:
    """Gives a name on a COMBO output, as packs that make up file names do."""

    RETURN_TYPES = ("COMBO",)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI asks for it
        return {"required": {"name": ("STRING", {"default": ""})}}

    def give(self, name: str) -> tuple[str]:
        return (name,)


class Sink:
    """Ends a graph."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "take"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI asks for it
        return {"required": {"value": ("*", {})}}

    def take(self, value: object) -> dict[str, Any]:
        return {"ui": {}}


class Listener:
    """What the executor tells a page."""

    client_id = "tests"
    last_node_id = None

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def send_sync(self, event: str, data: Any, _sid: str | None = None) -> None:
        self.events.append((event, data))

    def queue_updated(self) -> None:
        pass


class Executor:
    """ComfyUI's executor with its cache between queues."""

    def __init__(self) -> None:
        self._execution: Any = importlib.import_module("execution")
        self._listener = Listener()
        arguments = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        classic = self._execution.CacheType.CLASSIC
        self.executor = self._execution.PromptExecutor(self._listener, cache_type=classic, cache_args=arguments)

    def validate(self, graph: Graph) -> str:
        """What ComfyUI finds wrong with a graph before it runs it; empty if nothing is."""
        is_valid, error, _, errors = asyncio.run(
            self._execution.validate_prompt(str(uuid.uuid4()), copy_of(graph), None)
        )
        return "" if is_valid and not errors else f"{error} {errors}"

    def run(self, graph: Graph) -> tuple[str, str, list[str]] | None:
        """Run a graph to its end; type, message and traceback of what went wrong, "refused" where it was not run."""
        if wrong := self.validate(graph):
            return "refused", wrong, []
        self._listener.events.clear()
        ends = [node for node in graph if node in ("sink", "node")]
        self.executor.execute(copy_of(graph), str(uuid.uuid4()), {"client_id": Listener.client_id}, ends[:1])
        for event, data in self._listener.events:
            if event == "execution_error":
                return data["exception_type"], data["exception_message"], data["traceback"]
        return None

    def queue(self, graph: Graph) -> set[str]:
        """Run a graph; the nodes that were executed, the others came from the cache.

        Raises:
            RuntimeError: a node failed; with its message.
        """
        assert not (wrong := self.validate(graph)), wrong
        self._listener.events.clear()
        ends = [node for node, entry in graph.items() if entry["class_type"] == SINK]
        self.executor.execute(copy_of(graph), str(uuid.uuid4()), {"client_id": Listener.client_id}, ends)
        for event, data in self._listener.events:
            if event == "execution_error":
                raise RuntimeError(data["exception_message"])
        ran = {data["node"] for event, data in self._listener.events if event == "executing"}
        return {node for node in ran if node is not None}


def copy_of(graph: Graph) -> Graph:
    """ComfyUI writes into what it is given."""
    return {node: {**entry, "inputs": dict(entry["inputs"])} for node, entry in graph.items()}


@contextmanager
def nodes_of_tests() -> Iterator[None]:
    """Inside, ComfyUI knows the nodes of this module."""
    table = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    table.update({NAME: FileName, SINK: Sink})
    try:
        yield
    finally:
        del table[NAME], table[SINK]
