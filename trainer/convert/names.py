"""Names of adapter tensors in training states and in diffusers' modules, to published names.

Sources: tencent-ailab/IP-Adapter tutorial_train.py (accelerate states), okotaku/diffengine ip_adapter_save_hook.py
(mmengine states), diffusers loaders/unet.py (its own modules' names).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConvertError

_WRAPPERS = ("state_dict.", "module.")  # mmengine and Lightning; DeepSpeed and DDP
_PROJECTION = re.compile(r"(?:image_proj|image_proj_model|image_projection)\.(.+)")
_NUMBERED = re.compile(r"(?:ip_adapter|adapter_modules)\.(\d+)\.(.+)")
_IN_UNET = re.compile(
    r"(?:unet\.)?((?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+)"
    r"\.attn([12])\.(?:processor\.)?(to_(?:[kv]_ip|[qkv]_lora|out_lora)\..+)"
)
# Frozen models and training state that lie beside an adapter.
_BESIDE = (
    "unet.",
    "image_encoder.",
    "text_encoder",
    "vae.",
    "optimizer.",
    "message_hub.",
    "meta.",
    "param_schedulers.",
)
_CHECKPOINT_ORDER = ("down_blocks", "up_blocks", "mid_block")
_FULL = (("ff.net.0.proj.", "proj.0."), ("ff.net.2.", "proj.2."), ("norm.", "proj.3."))
_LINEAR = (("image_embeds.", "proj."),)
# A resampler's layer in diffusers from 0.28 on, and before.
_RESAMPLER = tuple(
    (re.compile(rf"(layers\.\d+)\.{theirs}"), rf"\1.{ours}")
    for theirs, ours in (
        (r"ln0\.", "0.norm1."),
        (r"ln1\.", "0.norm2."),
        (r"ff\.0\.", "1.0."),
        (r"ff\.1\.net\.0\.proj\.", "1.1."),
        (r"ff\.1\.net\.2\.", "1.3."),
        (r"0\.(?=weight$|bias$)", "0.norm1."),
        (r"1\.(?=weight$|bias$)", "0.norm2."),
        (r"3\.0\.", "1.0."),
        (r"3\.1\.net\.0\.proj\.", "1.1."),
        (r"3\.1\.net\.2\.", "1.3."),
        (r"(?:attn|2)\.to_out\.0\.", "0.to_out."),
        (r"(?:attn|2)\.(?=to_)", "0."),
    )
)
_KEY, _VALUE, _BOTH = ".0.to_k.weight", ".0.to_v.weight", ".0.to_kv.weight"


@dataclass(frozen=True)
class Parts:
    """An adapter's tensors, taken apart.

    Attributes:
        projection: under the names that follow `image_proj.`.
        sites: by published number and the name that follows it.
        source: what kind of file this was, in words.
    """

    projection: dict[str, Tensor]
    sites: dict[tuple[int, str], Tensor]
    source: str

    def tensors(self) -> dict[str, Tensor]:
        """Under published flat names, projection first, sites by number."""
        flat = {f"image_proj.{name}": tensor for name, tensor in self.projection.items()}
        order = sorted(self.sites)
        return flat | {f"ip_adapter.{number}.{name}": self.sites[number, name] for number, name in order}


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a training framework put around the model's names, and without what it stored beside them."""
    for wrapper in _WRAPPERS:
        inner = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items() if name.startswith(wrapper)}
        if inner:
            return unwrapped(inner)
    return dict(tensors)


def take_apart(tensors: Mapping[str, Tensor]) -> Parts:
    """Sort tensors of any known layout.

    Sites named by their place in the UNet get their number from it; the order of names in the file plays no part.

    Raises:
        ConvertError: tensors that belong to nothing known, or several adapters in one.
    """
    projection: dict[str, Tensor] = {}
    numbered: dict[tuple[int, str], Tensor] = {}
    placed: dict[tuple[str, int, str], Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if match := _PROJECTION.fullmatch(name):
            projection[match[1]] = tensor
        elif match := _NUMBERED.fullmatch(name):
            numbered[int(match[1]), _bare(match[2])] = tensor
        elif match := _IN_UNET.fullmatch(name):
            placed[match[1], int(match[2]), _bare(match[3])] = tensor
        elif not name.startswith(_BESIDE):
            unknown.append(name)
    if unknown and (projection or numbered or placed):
        raise ConvertError(
            f"tensors that belong to no known kind of adapter: {', '.join(unknown[:4])}",
            expected="an image projection and K/V projections, and frozen models beside them",
            action="report this with the name of the program that wrote the file",
        )
    published = published_projection(projection)
    source = _source(tensors, is_published=published == projection and not placed)
    return Parts(published, _by_place(placed) if placed else numbered, source)


def published_projection(projection: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of diffusers' projection modules to published ones; published names stay."""
    table = _FULL if "ff.net.0.proj.weight" in projection else _LINEAR
    renamed: dict[str, Tensor] = {}
    for name, tensor in projection.items():
        published = name
        if "latents" in projection:
            for pattern, replacement in _RESAMPLER:
                published, count = pattern.subn(replacement, name)
                if count:
                    break
        else:
            start, replacement = next(((s, r) for s, r in table if name.startswith(s)), ("", ""))
            published = replacement + name.removeprefix(start)
        renamed[published] = tensor
    for name in [name for name in renamed if name.endswith(_KEY)]:
        value = name.removesuffix(_KEY) + _VALUE
        if value in renamed:
            renamed[name.removesuffix(_KEY) + _BOTH] = torch.cat((renamed.pop(name), renamed.pop(value)))
    return renamed


def _by_place(placed: Mapping[tuple[str, int, str], Tensor]) -> dict[tuple[int, str], Tensor]:
    """Published numbers: twice the place of the transformer layer, and one more for cross-attention (attn2)."""
    rank = {path: number for number, path in enumerate(sorted({path for path, _, _ in placed}, key=_place))}
    return {(2 * rank[path] + attention - 1, name): tensor for (path, attention, name), tensor in placed.items()}


def _place(path: str) -> tuple[int, ...]:
    return _CHECKPOINT_ORDER.index(path.partition(".")[0]), *(int(part) for part in path.split(".") if part.isdigit())


def _bare(name: str) -> str:
    """diffusers numbers the adapters of a processor: `to_k_ip.0.weight`."""
    part, number, rest = (*name.split(".", 2), "", "")[:3]
    if not part.endswith("_ip") or not number.isdigit():
        return name
    if number != "0":
        raise ConvertError(
            f"a state with several adapters in one model ({name})",
            expected="one adapter",
            action="save each adapter by itself",
        )
    return f"{part}.{rest}"


def _source(tensors: Mapping[str, Tensor], *, is_published: bool) -> str:
    starts = {name.partition(".")[0] for name in tensors}
    if "image_proj_model" in starts:
        return "a training state of the official scripts (accelerate)"
    if "image_projection" in starts:
        return "a diffengine training state (mmengine)"
    if is_published:
        return "an adapter file" if "adapter_modules" not in starts else "an adapter file with Kolors' names"
    return "an adapter file with diffusers' names"
