"""The LoRA of a FaceID file changes the model's weights as the file says, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, tiny_unet
from support.published import nested, random_tensors, tiny_face_adapter, write_bin, write_safetensors

RANK = 3


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


def faceid(layout: str, unet: Any) -> dict[str, Tensor]:
    """LoRA shapes follow the UNet's own layers; all other sizes are tiny."""
    dims = tiny_unet.site_dims(unet)
    shapes = tiny_face_adapter("faceid", site_dims=dims, cross_attention_dim=tiny_unet.CONTEXT_DIM, lora_rank=RANK)
    return random_tensors(shapes, scale=0.2)


@pytest.fixture(scope="module")
def adapter(layout: str, base_directory: Path, unet: Callable) -> tuple[Any, dict[str, Tensor]]:
    tensors = faceid(layout, unet(layout))
    name = f"faceid-lora-{layout}.bin"
    write_bin(base_directory / "models" / "ipadapter" / name, nested(tensors))
    return comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto"), tensors


def changed_by_hand(layout: str, tensors: dict[str, Tensor], strength: float) -> Any:
    """The UNet with W + strength · up · down in every layer, numbered as diffusers numbers attention processors."""
    unet = tiny_unet.diffusers_unet(layout)
    modules = dict(unet.named_modules())
    for number, name in enumerate(unet.attn_processors):
        attention = modules[name.removesuffix(".processor")]
        layers = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}
        for part, layer in layers.items():
            up, down = (tensors[f"ip_adapter.{number}.to_{part}_lora.{side}.weight"] for side in ("up", "down"))
            layer.weight += strength * up @ down
    return unet


@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_weights_become_those_of_the_formula(
    layout: str, adapter: Any, model: Callable, sample: Callable, strength: float
) -> None:
    loaded, tensors = adapter
    patched = comfy_host.run("IPAApplyFaceLora", model=model(layout), adapter=loaded, strength=strength)
    expected = sample(tiny_unet.comfy_model(layout, changed_by_hand(layout, tensors, strength)))
    plain = sample(model(layout))
    assert (expected - plain).abs().max() > 1e-3
    assert (sample(patched) - expected).norm() < 1e-3 * (expected - plain).norm()
    assert torch.equal(sample(model(layout)), plain)


def test_strength_zero_is_the_model_itself(layout: str, adapter: Any, model: Callable) -> None:
    assert comfy_host.run("IPAApplyFaceLora", model=model(layout), adapter=adapter[0], strength=0.0) is model(layout)


def test_an_adapter_that_reads_pictures_needs_none(model: Callable, make_adapter: Callable) -> None:
    with pytest.raises(ValueError, match=r"without a LoRA.*remove this node"):
        comfy_host.run(
            "IPAApplyFaceLora", model=model("sd15"), adapter=make_adapter("base", "sd15").loaded, strength=1.0
        )


def test_a_faceid_file_without_lora_says_where_to_get_one(
    layout: str, adapter: Any, model: Callable, base_directory: Path
) -> None:
    bare = {name: tensor for name, tensor in adapter[1].items() if "lora" not in name}
    write_safetensors(base_directory / "models" / "ipadapter" / f"bare_{layout}.safetensors", bare)
    loaded = comfy_host.run("IPALoadAdapter", adapter_file=f"bare_{layout}.safetensors", image_encoder="none")
    with pytest.raises(ValueError, match=r"without a LoRA.*Load LoRA"):
        comfy_host.run("IPAApplyFaceLora", model=model(layout), adapter=loaded, strength=1.0)


def test_a_model_of_another_base_is_refused(layout: str, adapter: Any, model: Callable) -> None:
    other = {"sd15": "sdxl", "sdxl": "sd15"}[layout]
    with pytest.raises(ValueError, match="attention layers"):
        comfy_host.run("IPAApplyFaceLora", model=model(other), adapter=adapter[0], strength=1.0)


@pytest.mark.parametrize("by", ["wrapper", "object patch"])
@pytest.mark.parametrize("is_loaded", [False, True], ids=["fresh", "sampled before"])
def test_a_compiled_model_takes_the_lora(
    layout: str, adapter: Any, model: Callable, sample: Callable, by: str, is_loaded: bool
) -> None:
    """As ComfyUI's node compiles, and as other packs do: with the compiled network in place of the other."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    loaded, _ = adapter
    compiled = model(layout).clone()
    if by == "wrapper":
        set_torch_compile_wrapper(model=compiled, backend="eager")
    else:
        network = torch.compile(compiled.get_model_object("diffusion_model"), backend="eager")
        compiled.add_object_patch("diffusion_model", network)
    with torch.compiler.set_stance("force_eager"):  # what is compiled is not the question here
        if is_loaded:
            sample(compiled, steps=1)
        patched = comfy_host.run("IPAApplyFaceLora", model=compiled, adapter=loaded, strength=1.0)
        given = sample(patched, steps=1)
    plain = comfy_host.run("IPAApplyFaceLora", model=model(layout), adapter=loaded, strength=1.0)
    torch.testing.assert_close(given, sample(plain, steps=1), rtol=1e-4, atol=1e-3)
    sample(model(layout), steps=1)  # leaves the shared network as it was
