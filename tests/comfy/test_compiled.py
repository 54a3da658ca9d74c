"""A compiled model draws what it draws uncompiled, also when adapters come and go after it was compiled and run.

ComfyUI's TorchCompileModel keeps the compiler from looking at `transformer_options`, where all patches and the order of
the batch stand. Backend "eager" compiles as any other does, up to the generation of code.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, tiny_unet
from support.comfy_fixtures import AdapterFile
from support.published import random_tensors, tiny_adapter, write_safetensors

WHOLE_GRAPH = "sdxl"
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
long = pytest.mark.long
both_layouts = pytest.mark.parametrize("layout", [pytest.param("sd15", marks=long), "sdxl"])
whole_graph = pytest.mark.parametrize("layout", [WHOLE_GRAPH])


@pytest.fixture(autouse=True)
def fresh_compiler(layout: str, base_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's attention for a CPU breaks the graph at every call, PyTorch's leaves it whole: one for each layout."""
    from comfy.ldm.modules import attention

    torch._dynamo.reset()
    is_whole = layout == WHOLE_GRAPH
    used = attention.attention_pytorch if is_whole else attention.attention_sub_quad
    monkeypatch.setattr(attention, "optimized_attention", used)


@pytest.fixture(scope="module")
def small(base_directory: Path) -> Callable[[str], Any]:
    """UNets with few blocks, as tracing takes long."""

    @lru_cache
    def make(layout: str) -> Any:
        import comfy.model_patcher
        import comfy.supported_models

        is_deep = layout == "sdxl"
        description = tiny_unet.LAYOUTS[layout]
        shape = {"channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1 + is_deep]}
        shape |= {"transformer_depth_output": [1 + is_deep] * 2, "transformer_depth_middle": 1}
        shape |= {"model_channels": 64} if is_deep else {}  # SDXL has 64 to a head
        config = getattr(comfy.supported_models, description.comfy_class)(description.comfy | shape)
        config.set_inference_dtype(torch.float32, None)
        torch.manual_seed(3)
        built = config.get_model({}, "", device="cpu").eval()
        for parameter in built.diffusion_model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(built, load_device=cpu, offload_device=cpu)

    return make


@pytest.fixture
def setting(layout: str, small: Callable, base_directory: Path, make_tokens: Callable) -> tuple[Any, Any, Any]:
    model = small(layout)
    discover = comfy_host.pack("ipadapter_core.backbone.registry").discover_sites
    shapes = tiny_adapter("base", site_dims=[site.dim for site in discover(model.model.diffusion_model).sites])
    name = f"small-{layout}.safetensors"
    write_safetensors(base_directory / "models" / "ipadapter" / name, random_tensors(shapes))
    loaded = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="none")
    adapter = AdapterFile(name, {}, loaded)
    return model, adapter, make_tokens(adapter)


def compiled(model: Any) -> Any:
    """As the node TorchCompileModel, with a backend that needs no compiler of the system."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    clone = model.clone()
    set_torch_compile_wrapper(model=clone, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    return clone


def same(given: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(given, wanted, **CLOSE)


@pytest.mark.parametrize(
    ("layout", "is_behind"),
    [pytest.param("sd15", True, marks=long), ("sdxl", True), pytest.param("sdxl", False, marks=long)],
)
def test_a_second_reference_another_preset_and_a_split_batch(
    setting: tuple,
    apply: Callable,
    sample: Callable,
    make_tokens: Callable,
    is_behind: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, adapter, tokens = setting
    base = model if is_behind else compiled(model)

    def both(tokens: Any = tokens, **use: Any) -> tuple[Any, Any]:
        patched, plain = (apply(onto, adapter, tokens, **use) for onto in (base, model))
        return (compiled(patched) if is_behind else patched), plain

    for use in (
        {},
        {"tokens": make_tokens(adapter, seed=9, references=2)},
        {"layer_preset": "style", "mask": torch.ones(1, 8, 8).triu(), "end_percent": 0.6},
    ):
        given, wanted = (sample(each, steps=1) for each in both(**use))
        same(given, wanted)
    given, wanted = both()
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e30)
    same(sample(given, steps=1), sample(wanted, steps=1))


@long
@both_layouts
def test_an_adapter_that_comes_and_goes(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    bare = compiled(model)
    without, with_it = sample(model, steps=1), sample(apply(model, adapter, tokens), steps=1)
    same(sample(bare, steps=1), without)
    same(sample(apply(bare, adapter, tokens), steps=1), with_it)
    same(sample(bare, steps=1), without)


@long
@whole_graph
def test_two_adapters_after_one(setting: tuple, apply: Callable, sample: Callable, make_tokens: Callable) -> None:
    model, adapter, tokens = setting
    other = make_tokens(adapter, seed=4)
    one = apply(compiled(model), adapter, tokens)
    sample(one, steps=1)
    both = apply(one, adapter, other, layer_preset="composition")
    wanted = apply(apply(model, adapter, tokens), adapter, other, layer_preset="composition")
    same(sample(both, steps=1), sample(wanted, steps=1))


@whole_graph
def test_a_pack_that_compiles_single_blocks(setting: tuple, apply: Callable, sample: Callable) -> None:
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model, adapter, tokens = setting
    blocks = model.clone()
    for name, module in model.get_model_object("diffusion_model").named_modules():
        if type(module).__name__ == "BasicTransformerBlock":
            options = {"guard_filter_fn": skip_torch_compile_dict}
            blocks.add_object_patch(f"diffusion_model.{name}", torch.compile(module, backend="eager", options=options))
    without, with_it = sample(model, steps=1), sample(apply(model, adapter, tokens), steps=1)
    for patched, wanted in ((blocks, without), (apply(blocks, adapter, tokens), with_it), (blocks, without)):
        same(sample(patched, steps=1), wanted)


@whole_graph
def test_the_network_is_still_compiled(
    setting: tuple, apply: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter, tokens = setting
    graphs: list[int] = []

    def count(graph: Any, _inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    from comfy_api.torch_helpers import set_torch_compile_wrapper

    patched = apply(model, adapter, tokens)
    set_torch_compile_wrapper(model=patched, backend=count)
    sample(patched, steps=1)
    assert sum(graphs) > 100


@whole_graph
def test_a_compiler_that_plays_back_what_it_recorded_is_refused(
    setting: tuple, apply: Callable, sample: Callable
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    patched.model_options["torch_compile_kwargs"] = {"backend": "cudagraphs"}  # as TorchCompileModel leaves it
    with pytest.raises(ValueError, match="set backend of TorchCompileModel to 'inductor', with"):
        sample(patched, steps=1)


@long
@pytest.mark.slow
@whole_graph
def test_a_model_compiled_in_another_way_is_refused(setting: tuple, apply: Callable, sample: Callable) -> None:
    """As by a pack that compiles the method: nothing shows it, and its code would be that of other adapters."""
    model, adapter, tokens = setting
    compiled = model.clone()
    forward = model.get_model_object("diffusion_model").forward
    compiled.add_object_patch("diffusion_model.forward", torch.compile(forward, backend="eager"))
    with pytest.raises(ValueError, match="compile it with TorchCompileModel"):
        sample(apply(compiled, adapter, tokens), steps=1)


@pytest.mark.slow
@whole_graph
def test_a_heat_map_of_it_is_that_of_the_plain_model(
    setting: tuple, apply: Callable, sample: Callable, make_tokens: Callable
) -> None:
    model, adapter, _ = setting
    maps = []
    for base in (compiled(model), model):
        patched, record = comfy_host.call("IPARecord", model=apply(base, adapter, make_tokens(adapter, references=2)))
        sample(patched, steps=1)
        maps.append(record.maps.maps[0])
    assert maps[0].min() > 0
    same(*maps)
