"""What runs a node names its inputs: native nodes as in the schema, compatibility nodes under their old methods."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from legacy.facts import FACTS
from legacy.test_schema import NATIVE
from support import comfy_host


def named(function: Any) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    assert {parameter.kind for parameter in parameters} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return parameters


@pytest.mark.parametrize("node_id", NATIVE)
def test_execute_names_the_inputs_of_the_schema(base_directory: Path, node_id: str) -> None:
    parameters = named(comfy_host.node(node_id).execute)
    inputs = comfy_host.schema(node_id).inputs
    assert [parameter.name for parameter in parameters] == [item.id for item in inputs]
    may_be_absent = [parameter.name for parameter in parameters if parameter.default is not inspect.Parameter.empty]
    assert may_be_absent == [item.id for item in inputs if item.optional]


@pytest.mark.parametrize("node_id", FACTS)
def test_the_old_method_names_every_input(base_directory: Path, node_id: str) -> None:
    """And asks for none that a saved workflow need not have; null is what it takes if such a one is left out."""
    found = comfy_host.node(node_id)
    parameters = named(getattr(found(), found.FUNCTION))
    assert {item.name for item in FACTS[node_id].inputs} <= {parameter.name for parameter in parameters}
    must_be_given = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    assert must_be_given <= {item.name for item in FACTS[node_id].inputs if not item.optional}
    defaults = {parameter.name: parameter.default for parameter in parameters}
    assert {defaults[item.name] for item in FACTS[node_id].inputs if item.optional} <= {None}
