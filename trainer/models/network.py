"""`TrainableAdapter`: the network that learns, as one forward from image features to the K/V of every site."""

# B samples, S feature positions, E encoder dim, N image tokens, C cross-attention dim

import json
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.backbone.registry import find_backbone
from ipadapter_core.backbone.row import SiteLayout
from ipadapter_core.face.lora_file import split_lora
from ipadapter_core.file.spec import AdapterSpec
from ipadapter_core.network.adapter import IPAdapter

from ..backbones.backbone import Backbone
from ..backbones.image_prompt import KV, ImagePrompt
from ..config import AdapterConfig
from ..readers.reader import FEATURES
from .face_network import LORA_LAYERS, FaceLora, face_tokens
from .image_encoder import ImageEncoder
from .wanted import wanted_adapter

_TIMES = 1000  # as InstantX's SD3.5 adapter counts them


class TrainableAdapter(nn.Module):
    """An adapter in float32, of which some sites may be left out or frozen.

    Invariants: `adapter.state_dict()` has the published names; a site that is neither trained nor frozen has zero
    values, so that the file acts in every program as it does here.

    Args:
        keeps_others: sites that are not trained act with the values they have; else they take no image.
        lora: trained beside it; None where the model stays as it is.
    """

    def __init__(
        self,
        adapter: IPAdapter,
        trained_sites: frozenset[int],
        *,
        keeps_others: bool = False,
        lora: FaceLora | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter.float()
        self.trained_sites = trained_sites
        others = frozenset(range(adapter.spec.num_sites)) - trained_sites
        self.frozen_sites = others if keeps_others else frozenset[int]()
        adapter.requires_grad_(True)
        self.lora = None if lora is None else lora.float()
        for index in others:
            for parameter in adapter.site(index).requires_grad_(False).parameters():
                if not keeps_others:
                    nn.init.zeros_(parameter)

    @property
    def spec(self) -> AdapterSpec:
        return self.adapter.spec

    @property
    def metadata(self) -> dict[str, str]:
        """Of a file with its tensors."""
        layers = {} if self.lora is None else {LORA_LAYERS: json.dumps(self.lora.layers)}
        return self.spec.to_metadata() | layers

    def published(self) -> dict[str, Tensor]:
        """All its tensors under published names, its LoRA among them."""
        return {**self.adapter.state_dict(), **({} if self.lora is None else self.lora.state_dict())}

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `published`."""
        adapter, lora = split_lora(tensors)
        self.adapter.load_state_dict(adapter)
        if self.lora is not None:
            self.lora.load_state_dict(lora)

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, features: Mapping[str, Tensor], times: Tensor | None = None) -> ImagePrompt:
        """What a reader gave for B references to each site's K and V (B, N, site dim); None where the site is left out.

        Always in float32: the residual stream of a wide resampler leaves float16's range.

        Args:
            times: (B, …), as `Backbone.adapter_times` gives them; of no matter to adapters that give the same at all times.
        """
        device = next(iter(features.values())).device
        with torch.autocast(device.type, enabled=False):
            if self.spec.is_timed:
                assert times is not None
                return self._at(features[FEATURES].float(), times.float())
            tokens = (
                self.adapter.project(features[FEATURES].float())
                if self.spec.face is None
                else face_tokens(self.adapter, features)
            )
            return ImagePrompt(
                self._kv(tokens),
                lora=None if self.lora is None else self.lora.weights(),
                layout=self.spec.layout,
                gates=self._gates(times),
                idle=self._idle(),
            )

    @property
    def _at_sites(self) -> SiteLayout:
        return find_backbone(self.spec.backbone).layout(self.spec.layout)

    def _kv(self, tokens: Tensor) -> tuple[KV | None, ...]:
        acting, sites = self.trained_sites | self.frozen_sites, range(self.spec.num_sites)
        return tuple(self.adapter.kv(index, tokens) if index in acting else None for index in sites)

    def _idle(self) -> tuple[Tensor, ...]:
        """Clones, since FSDP takes the weights themselves away after this forward."""
        if not self._at_sites.scales_tokens:
            return ()
        sites = [self.adapter.site(index) for index in range(self.spec.num_sites)]
        return tuple(site.to_v_ip.bias.clone() for site in sites)

    def _gates(self, times: Tensor | None) -> tuple[Tensor | None, ...]:
        if self._at_sites.gate is None:
            return ()
        assert times is not None
        kept = [self.adapter.gate(index) for index in range(self.spec.num_sites)]
        return tuple(None if gate is None else gate(times.float()) for gate in kept)

    def _at(self, features: Tensor, times: Tensor) -> ImagePrompt:
        """Likewise, of an adapter whose tokens change with the time."""
        adapter = self.adapter
        tokens, time = adapter.timed_tokens(features, times * _TIMES)
        pairs = [adapter.timed_kv(index, tokens, functional.silu(time)) for index in range(self.spec.num_sites)]
        # clones, since FSDP takes the weights themselves away after this forward
        norms = [[weight.clone() for weight in adapter.timed_norms(index)] for index in range(self.spec.num_sites)]
        return ImagePrompt(tuple((k.flatten(2), v.flatten(2)) for k, v in pairs), tuple((q, k) for q, k in norms))


def published_name(name: str) -> str:
    """Of a parameter of a `TrainableAdapter`."""
    return name.removeprefix("adapter.").removeprefix("lora.")


def new_adapter(
    config: AdapterConfig, base: Backbone, encoder: ImageEncoder | None, seed: int = 0, *, is_fresh: bool = False
) -> TrainableAdapter:
    """Build the network a config describes for a base and an encoder; a fresh one whatever `pretrained` says.

    Projections start as PyTorch initialises them, from `seed`; K/V from the text projections (arXiv 2308.06721,
    section 4.1.2) unless `init` is random, and an adapter's own norms from the model's.

    Raises:
        BadInputError: an unknown layer preset, or one without a site here.
        MismatchError: `pretrained` is of another kind or size; says which. Or none of this kind is for such a base.
        UnreadableFileError, UnknownCheckpointError: as `load_adapter`, of `pretrained`.
        ModelNotFoundError: as `pretrained_file`.
    """
    wanted = wanted_adapter(config, base, encoder, is_fresh=is_fresh)
    spec, given = wanted.spec, wanted.given
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = IPAdapter(spec)
        lora = FaceLora(spec, config.rank, base.lora_layers) if config.rank else None
    if given is not None:
        adapter.load_state_dict(given.state_dict())
        if given.lora and lora is not None:
            lora.load(given.lora)
    elif config.init == "text":
        _start(adapter, base)
    return TrainableAdapter(adapter, wanted.trained, keeps_others=config.other_blocks == "frozen", lora=lora)


def _start(adapter: IPAdapter, base: Backbone) -> None:
    """From the model's own weights, as far as it has some."""
    with torch.no_grad():
        for index in range(adapter.spec.num_sites):
            weights, site = base.text_kv(index), adapter.site(index)
            if weights is not None and weights[0].shape == site.to_k_ip.weight.shape:
                site.to_k_ip.weight.copy_(weights[0])
                site.to_v_ip.weight.copy_(weights[1])
            base.start(index, cast(nn.Module, site))
