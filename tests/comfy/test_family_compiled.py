"""The law about torch.compile, for every kind of base model beside UNets; compiling a whole model takes half a minute."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, families
from support.families import FAMILIES, apply, sample

UNCOMPILED = ("anima_lucifer_early",)  # acts within a block, for which compiled code cannot be told apart
pytestmark = [pytest.mark.long, pytest.mark.parametrize("name", FAMILIES)]


@pytest.fixture
def setting(name: str, base_directory: Path) -> families.Setting:
    return families.setting_of(name, base_directory)


def compiled_clone(model: Any) -> Any:
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    return compiled


def test_a_compiled_model_draws_the_same(name: str, setting: tuple) -> None:
    model = setting[0]
    compiled = compiled_clone(model)
    if name in UNCOMPILED:
        with pytest.raises(ValueError, match="What to do: remove TorchCompileModel"):
            sample(name, apply(compiled, *setting[1:]), steps=1)
        return
    bare, patched = sample(name, model, steps=1), sample(name, apply(*setting), steps=1)
    for onto, wanted in ((compiled, bare), (apply(compiled, *setting[1:]), patched), (compiled, bare)):
        torch.testing.assert_close(sample(name, onto, steps=1), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_a_heat_map_of_a_compiled_model_is_that_of_the_plain_one(name: str, setting: tuple) -> None:
    if name in UNCOMPILED:
        pytest.skip("is refused")
    model, adapter, _ = setting
    maps = []
    for base in (compiled_clone(model), model):
        tokens = families.tokens_of(name, adapter, references=2)
        patched, record = comfy_host.call("IPARecord", model=apply(base, adapter, tokens))
        sample(name, patched, steps=1)
        maps.append(record.maps.maps[0])
    assert maps[0][:, :2].abs().max() > 0
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-3)
