"""Every node's `execute` names its inputs: as in the schema, in its order, and only optional ones may be absent."""

import inspect
from pathlib import Path

import pytest

from legacy.facts import FACTS
from legacy.test_schema import NATIVE, schema
from support import comfy_host


@pytest.mark.parametrize("node_id", [*FACTS, *NATIVE])
def test_execute_names_the_inputs_of_the_schema(base_directory: Path, node_id: str) -> None:
    parameters = inspect.signature(comfy_host.node(node_id).execute).parameters.values()
    assert {parameter.kind for parameter in parameters} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    inputs = schema(node_id).inputs
    assert [parameter.name for parameter in parameters] == [item.id for item in inputs]
    may_be_absent = [parameter.name for parameter in parameters if parameter.default is not inspect.Parameter.empty]
    assert may_be_absent == [item.id for item in inputs if item.optional]
