"""Mutated prompts through ComfyUI's own validation and executor, in one process: nodes need a ComfyUI around them."""

import logging
import random
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from . import comfy_host, memory
from .executor import SINK, Executor, Graph
from .fuzzing import MEMORY, SECONDS, HangError, Tally
from .strange import ANYTHING, LITERALS, plausible, strange

GIVEN = "TestsGiven"
_WIDGETS = ("FLOAT", "INT", "STRING", "BOOLEAN", "COMBO")
_VALUES: dict[str, Any] = {}


class Given:
    """Gives what a test put there, on an output that any socket takes."""

    RETURN_TYPES = ("*",)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI asks for it
        return {"required": {"key": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, key: str) -> float:  # noqa: N802
        return float("nan")

    def give(self, key: str) -> tuple[Any]:
        return (_VALUES[key],)


class NodeFuzzer:
    """Runs nodes on good inputs of which some are replaced.

    Args:
        goods: inputs with which each node runs, by its id; widgets that are not there have their defaults.
    """

    def __init__(self, executor: Executor, goods: Mapping[str, Mapping[str, Any]]) -> None:
        self.executor = executor
        self.goods = goods
        self.said = ""  # the last message
        self.refused = 0  # by ComfyUI, before anything ran

    def fuzz(self, numbers: range, seed: int) -> Tally:
        tally = Tally()
        for number in numbers:
            memory.free_memory()
            before = memory.reset_peak()
            outcome = self.case(random.Random(f"{seed}/{number}"))
            grown = memory.peak() - before
            tally.add(number, outcome if grown <= MEMORY else f"took more than {MEMORY >> 20} MB", grown)
        return tally

    def case(self, rng: random.Random) -> str:
        """One to three faults in the inputs of a node; "read", "message", or what went wrong."""
        node_id = rng.choice(sorted(self.goods))
        inputs = dict(self.inputs(node_id))
        kinds = []
        items = {item.id: item for item in comfy_host.schema(node_id).inputs}
        for name in rng.sample(sorted(inputs), min(len(inputs), rng.choice((1, 1, 2, 3)))):
            kind, inputs[name] = self._mutated(rng, inputs[name], items.get(name))
            kinds.append(f"{name}: {kind}")
        outcome = self.outcome(node_id, inputs)
        return outcome if outcome in ("read", "message") else f"{node_id} ({', '.join(kinds)}): {outcome}"

    def inputs(self, node_id: str) -> dict[str, Any]:
        """Good ones, of which literals stand as they are in a prompt, and all else is in a `Link`."""
        found = {name: default for name, default in defaults(node_id).items() if default is not None}
        types = {item.id: item.get_io_type() for item in comfy_host.schema(node_id).inputs}
        for name, value in self.goods[node_id].items():
            found[name] = value if types.get(name) in _WIDGETS else Link(value)
        return found

    def outcome(self, node_id: str, inputs: Mapping[str, Any]) -> str:
        """Of a prompt with this node."""
        _VALUES.clear()
        graph: Graph = {"sink": {"class_type": SINK, "inputs": {"value": ["node", 0]}}}
        for name, value in inputs.items():
            if isinstance(value, Link):
                _VALUES[name] = value.value
                graph[f"given {name}"] = {"class_type": GIVEN, "inputs": {"key": name}}
        links = {name: [f"given {name}", 0] if isinstance(value, Link) else value for name, value in inputs.items()}
        graph["node"] = {"class_type": node_id, "inputs": links}
        if comfy_host.schema(node_id).is_output_node:
            del graph["sink"]
        with _no_hang(), _warnings() as warnings:
            try:
                error = self.executor.run(graph)
            except HangError:
                return f"more than {SECONDS} s"
        if warnings:
            return f"a fingerprint raised: {warnings[0]}"
        if error is None:
            return "read"
        kind, message, trace = error
        self.said = message
        self.refused += kind == "refused"
        if all(part in message for part in ("Found: ", ". Expected: ", ". What to do: ")) or kind == "refused":
            return "message"
        ours = [line for line in trace if str(comfy_host.ROOT) in line]
        return f"{kind}: {message[:80]!r} at {ours[-1].split(',')[0:3] if ours else trace[-1:]}"

    def _mutated(self, rng: random.Random, good: Any, item: Any) -> tuple[str, Any]:
        chance = rng.random()
        if chance < 0.03:  # what belongs on another socket
            other = rng.choice([value for given in self.goods.values() for value in given.values()])
            return f"a {type(other).__name__}", Link(other)
        if isinstance(good, Link):
            kind, value = strange(rng, good.value)
            return kind, Link(value)
        if chance < 0.15:
            kind = rng.choice(sorted(LITERALS))
            return f"literal {kind}", ANYTHING[kind]()
        if chance < 0.5:
            kind, value = plausible(rng, item)
            return f"{kind} {value!r}", rng.choice((value, Link(value)))
        kind = rng.choice(sorted(ANYTHING))
        return kind, Link(ANYTHING[kind]())


class Link:
    """A value that another node gives."""

    def __init__(self, value: Any) -> None:
        self.value = value


def defaults(node_id: str) -> dict[str, Any]:
    """What the widgets of a node say when nobody touched them; None for sockets."""
    found: dict[str, Any] = {}
    for item in comfy_host.schema(node_id).inputs:
        options = getattr(item, "options", None)
        default = getattr(item, "default", None)
        found[item.id] = options[0] if options and default is None else default
    return found


@contextmanager
def _no_hang() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What ComfyUI says when a fingerprint raised."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("WARNING: "):
                said.append(record.getMessage())

    listener = Listener()
    logging.getLogger().addHandler(listener)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(listener)
