"""Compare with Reference: the encoder's own cosine, whatever encoder is at hand."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from support import comfy_host, encoders
from support.published import random_tensors, tiny_adapter, write_safetensors


def pictures(count: int, seed: int) -> Tensor:
    """Squares, so that nothing is cut off."""
    return torch.rand(count, 40, 40, 3, generator=torch.Generator().manual_seed(seed))


def own_cosine(kind: str, model: Any, encoder: Any, first: Tensor, second: Tensor) -> float:
    """By transformers' class alone, of the pixels it is given."""
    pixels = comfy_host.pack("ipadapter_core.encoder.pixels").encoder_pixels
    with torch.no_grad():
        out = [model(pixels(each[None], encoder.pixel_format, "center")) for each in (first, second)]
    name = "image_embeds" if kind == "clip" else "pooler_output"
    return float(cosine_similarity(*(getattr(each, name) for each in out)))


def test_it_is_the_encoders_own_cosine(base_directory: Path) -> None:
    folder = base_directory / "models" / "clip_vision" / "compare_clip"
    model = encoders.write_folder("clip", folder)
    sizes = {"site_dims": (8, 16, 16), "cross_attention_dim": 8, "image_dim": encoders.EMBED_DIM}
    file = base_directory / "models" / "ipadapter" / "compare.safetensors"
    write_safetensors(file, random_tensors(tiny_adapter("base", **sizes)))
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=file.name, image_encoder=f"{folder.name}/")
    images, references = pictures(2, 1), pictures(3, 2)
    similarity, chart = comfy_host.call("IPACompare", image=images, reference=references, adapter=adapter)
    pairs = [own_cosine("clip", model, adapter.encoder, image, other) for image in images for other in references]
    assert similarity == pytest.approx(sum(pairs) / 6, abs=1e-5)
    assert chart.shape[0] == 1
    assert chart.shape[1] > 6 * 64
    same, _ = comfy_host.call("IPACompare", image=images[:1], reference=images[:1], adapter=adapter)
    assert same == pytest.approx(1)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", encoders.COMFY_KINDS)
def test_of_comfyuis_own_encoders_too(kind: str, base_directory: Path, tmp_path: Path) -> None:
    clip_vision, model = encoders.comfy_pair(kind, tmp_path / "encoder.safetensors")
    encoder = comfy_host.pack("nodes.encoding.encoder").from_clip_vision(clip_vision)
    first, second = pictures(2, 3)
    similarity, _ = comfy_host.call("IPACompare", image=first[None], reference=second[None], clip_vision=clip_vision)
    if kind == "siglip" and encoder.spec.embed_dim is None:  # ComfyUI's has no pooling head
        kind = "last"
        pixels = comfy_host.pack("ipadapter_core.encoder.pixels").encoder_pixels
        with torch.no_grad():
            out = [model(pixels(each[None], encoder.pixel_format, "center")) for each in (first, second)]
        wanted = float(cosine_similarity(*(each.last_hidden_state.mean(dim=1) for each in out)))
    else:
        wanted = own_cosine(kind, model, encoder, first, second)
    assert similarity == pytest.approx(wanted, abs=2e-3)


def test_a_connected_encoder_comes_before_the_adapters_own(base_directory: Path, tmp_path: Path) -> None:
    """The adapter's is a kind judge of what it drew itself."""
    clip_vision, _ = encoders.comfy_pair("clip", tmp_path / "encoder.safetensors")
    folder = base_directory / "models" / "clip_vision" / "compare_other"
    encoders.write_folder("clip", folder, seed=1)
    file = base_directory / "models" / "ipadapter" / "compare_other.safetensors"
    sizes = {"site_dims": (8, 16, 16), "cross_attention_dim": 8, "image_dim": encoders.EMBED_DIM}
    write_safetensors(file, random_tensors(tiny_adapter("base", **sizes)))
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=file.name, image_encoder=f"{folder.name}/")
    given = {"image": pictures(1, 5), "reference": pictures(1, 6)}
    both, connected, own = (
        comfy_host.call("IPACompare", **given, **encoder)[0]
        for encoder in (
            {"adapter": adapter, "clip_vision": clip_vision},
            {"clip_vision": clip_vision},
            {"adapter": adapter},
        )
    )
    assert both == connected != own
    shutil.rmtree(folder)


def test_without_an_encoder_it_says_what_to_connect(base_directory: Path) -> None:
    with pytest.raises(ValueError, match=r"What to do: connect Load IP-Adapter .*or Load CLIP Vision"):
        comfy_host.call("IPACompare", image=pictures(1, 0), reference=pictures(1, 1))


def test_a_longer_bar_is_a_greater_number(base_directory: Path) -> None:
    bars = comfy_host.pack("nodes.previews").bars
    image = torch.zeros(8, 8, 3)
    lengths = []
    for value in (-0.5, 0.0, 0.25, 1.0):
        chart = bars([(image, image, value)])
        lengths.append(int((chart[0, 30, :, 2] > 0.8).sum()))  # above the number
    assert lengths == sorted(lengths)
    assert lengths[0] == lengths[1] < lengths[2] < lengths[3]
    assert lengths[3] == pytest.approx(4 * lengths[2], rel=0.05)
