"""`IPAdapter`: the network an adapter file holds, loaded strictly and saved as published."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..backbone.registry import find_backbone
from ..errors import UnreadableFileError
from ..face.lora_file import check_lora, split_lora
from ..file.container import SAFETENSORS_SUFFIXES, read_header, read_tensors, write_safetensors
from ..file.detect import detect
from ..file.model_lora import check_model_lora, split_model_lora
from ..file.names import canonical_name, published_name
from ..file.spec import AdapterSpec, Projection
from ..operations import TORCH, Operations
from .face_projection import IdentityAndFaceProjection
from .projection import build_projection


class SiteProjection(Protocol):
    """The trained weights of one attention site, whatever the base model."""

    to_k_ip: nn.Linear
    to_v_ip: nn.Linear

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def requires_grad_(self, requires_grad: bool = True) -> "SiteProjection": ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object: ...


class IPAdapter(nn.Module):
    """Image projection and the K/V projections of every attention site.

    Invariant: `state_dict()` has exactly the canonical flat names (`image_proj.*`, and `ip_adapter.*` under the keys of
    the backbone: 1, 3, 5 … for a UNet), which `file.names` translates where an author publishes others.

    Attributes:
        lora: the LoRA a FaceID file carries, under its flat names; no part of this network, but of the base model.
        model_lora: likewise, one that is always on with the adapter.
    """

    def __init__(self, spec: AdapterSpec, ops: Operations = TORCH) -> None:
        super().__init__()
        self.spec = spec
        self.lora: Mapping[str, Tensor] = {}
        self.model_lora: Mapping[str, Tensor] = {}
        self.image_proj = build_projection(spec, ops)
        self._layout = find_backbone(spec.backbone).layout(spec.layout)
        self.ip_adapter = nn.ModuleDict(
            {
                self._layout.site_key(site): self._build_site(site_dim, ops)
                for site, site_dim in enumerate(spec.site_dims)
            }
        )
        if self._layout.shared_projection is not None:
            self.shared = self._layout.shared_projection(spec.cross_attention_dim, spec.site_dims[0], ops)

    def _build_site(self, site_dim: int, ops: Operations) -> nn.Module:
        spec, timed = self.spec, self._layout.timed
        if (headed := self._layout.headed_projection) is not None:
            return headed(spec.cross_attention_dim, site_dim, ops, spec.head_dim)
        if timed is None:
            return self._layout.site_projection(spec.cross_attention_dim, site_dim, ops)
        assert spec.resampler is not None
        return timed.projection(spec.cross_attention_dim, site_dim, ops, spec.head_dim, spec.resampler.dim)

    def site(self, index: int) -> SiteProjection:
        """Projections of the attention site with this index in checkpoint order."""
        return cast(SiteProjection, self.ip_adapter[self._layout.site_key(index)])

    def kv(self, index: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (…, T, H·D) of image tokens (…, T, C) at the site with this index."""
        weights = (
            self.ip_adapter[self._layout.site_key(index)] if self._layout.shared_projection is None else self.shared
        )
        return self._layout.kv(weights, tokens, self.spec.head_dim)

    def gate(self, index: int) -> nn.Module | None:
        """What makes a site's factors of the model's timestep embedding, (B, F, C) each; None if it has none."""
        make = self._layout.gate
        return None if make is None else make(self.ip_adapter[self._layout.site_key(index)])

    def timed_tokens(self, features: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (B, S, E) and timesteps (B or 1,), 0..1000, to image tokens (B, N, C) and the times' vectors
        (B or 1, W).

        For adapters whose `spec.is_timed` alone.
        """
        return cast("tuple[Tensor, Tensor]", self.image_proj(features, timestep))

    def timed_kv(self, index: int, tokens: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, H, D) of such tokens at a site; `time` went through SiLU."""
        assert self._layout.timed is not None
        return self._layout.timed.kv(self.ip_adapter[self._layout.site_key(index)], tokens, time)

    def timed_norms(self, index: int) -> tuple[Tensor, Tensor]:
        """Weights (D,) that a site's own norms of the picture's queries and keys have, likewise."""
        assert self._layout.timed is not None
        return self._layout.timed.adapter_norms(self.ip_adapter[self._layout.site_key(index)])

    def project(self, features: Tensor) -> Tensor:
        """Image features (B, E) or (B, S, E) to image tokens (B, N, C)."""
        return cast(Tensor, self.image_proj(features))

    def project_faces(
        self, identities: Tensor, features: Tensor | None = None, structure: float | None = None
    ) -> Tensor:
        """What a FaceID adapter (`spec.face`) makes of faces.

        Args:
            identities: (B, I), the recognition network's embeddings, of length 1 if `spec.face.is_normed`.
            features: (B, S, E) of the aligned face pictures; for FaceID-Plus alone.
            structure: FaceID-Plus v2's factor of what the picture adds to the identity, 1 as trained; None is v1.

        Returns:
            (B, N, W).
        """
        if self.spec.projection is Projection.RESAMPLER:
            return self.project(identities[:, None])
        if not isinstance(self.image_proj, IdentityAndFaceProjection):
            return self.project(identities)
        assert features is not None
        return self.image_proj.read(identities, features, structure)


def build_adapter(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], ops: Operations = TORCH) -> IPAdapter:
    """Recognise tensors and make the network of them, without copying a tensor.

    Args:
        tensors: under flat names, as `read_tensors` gives them.
        metadata: safetensors metadata, may be empty.
        ops: layer classes.

    Raises:
        UnsupportedFamilyError, UnknownCheckpointError, UnreadableFileError: as `detect`, or keys or shapes that the
            recognised kind does not have.
    """
    state_dict = {canonical_name(name): tensor for name, tensor in tensors.items()}
    spec = detect({name: tuple(tensor.shape) for name, tensor in state_dict.items()}, metadata)
    state_dict, lora = split_lora(state_dict)
    check_lora(lora, spec.num_sites)
    state_dict, model_lora = split_model_lora(state_dict)
    check_model_lora(model_lora)
    with torch.device("meta"):
        adapter = IPAdapter(spec, ops)
    _check_strictly(adapter.state_dict(), state_dict, spec)
    adapter.load_state_dict(state_dict, strict=True, assign=True)
    adapter.lora, adapter.model_lora = lora, model_lora
    return adapter.requires_grad_(False).eval()


def load_adapter(path: Path, ops: Operations = TORCH, *, can_map: bool = True, verify_again: bool = False) -> IPAdapter:
    """Read an adapter file; its tensors stay memory-mapped if they may.

    Arguments and errors as `read_tensors`, and errors as `build_adapter`.
    """
    file = read_tensors(path, can_map=can_map, verify_again=verify_again)
    return build_adapter(file.tensors, file.metadata, ops)


def read_spec(path: Path) -> AdapterSpec:
    """What adapter a file is, of safetensors from the header alone. Errors as `read_tensors` and `detect`."""
    if path.suffix not in SAFETENSORS_SUFFIXES:
        file = read_tensors(path)
        return detect({name: tuple(x.shape) for name, x in file.tensors.items()}, file.metadata)
    header = read_header(path, is_whole=True)
    metadata = {name: str(value) for name, value in header.pop("__metadata__", {}).items()}
    shapes = {name: entry.get("shape") for name, entry in header.items()}
    return detect({name: tuple(shape) for name, shape in shapes.items() if isinstance(shape, list)}, metadata)


def save_adapter(adapter: IPAdapter, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write published flat names and the spec as metadata, so that `load_adapter` gives the same spec and tensors."""
    tensors = {
        published_name(name, adapter.spec.layout): tensor
        for name, tensor in (*adapter.state_dict().items(), *adapter.lora.items(), *adapter.model_lora.items())
    }
    write_safetensors(path, tensors, {**(metadata or {}), **adapter.spec.to_metadata()})


def _check_strictly(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], spec: AdapterSpec) -> None:
    wrong = [f"{name} missing" for name in wanted if name not in given]
    wrong += [f"{name} not part of it" for name in given if name not in wanted]
    wrong += [
        f"{name} is {list(given[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    wrong += [f"{name} is of type {tensor.dtype}" for name, tensor in given.items() if not tensor.is_floating_point()]
    if wrong:
        raise UnreadableFileError(
            f"this looks like {spec.family}, but {'; '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}",
            expected=f"exactly the {len(wanted)} tensors of {spec.family}",
            action="download or export the adapter again",
        )
