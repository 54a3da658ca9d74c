"""Whether an adapter was made for a model."""

from collections.abc import Collection

from ..backbone.registry import find_backbone
from ..backbone.sites import Sites
from ..errors import MismatchError, with_article
from ..file.spec import AdapterSpec


def check_sites(spec: AdapterSpec, sites: Sites) -> None:
    """Make sure an adapter was made for a model like this one.

    Raises:
        MismatchError: kind of model, number, width or order of the sites differ; names both.
    """
    dims = tuple(site.dim for site in sites.sites)
    widths = {site.context_dim for site in sites.sites}
    heads = {site.head_dim for site in sites.sites}
    if (
        spec.backbone == sites.backbone.name
        and dims == spec.site_dims
        and widths <= {spec.cross_attention_dim, 0}
        and (not spec.head_dim or heads == {spec.head_dim})
    ):
        return
    adapter, unserved = base_of(spec), sites.unserved
    raise MismatchError(
        f"an adapter for {adapter} ({spec.family}: {spec.num_sites} attention layers, {spec.cross_attention_dim}-wide "
        f"tokens) and a model of the {sites.family} kind ({len(dims)} attention layers, {_widths(widths, dims)})",
        expected=f"an adapter and a model of the same base{f'; no adapter is known for {unserved}' if unserved else ''}",
        action=f"load {with_article(adapter)} model{'' if unserved else f', or an adapter made for {sites.family}'}",
    )


def base_of(spec: AdapterSpec) -> str:
    """The base models an adapter was made for, in words."""
    return find_backbone(spec.backbone).families.get((spec.cross_attention_dim, spec.num_sites), spec.base)


def _widths(of_tokens: Collection[int], of_sites: Collection[int]) -> str:
    if any(of_tokens):
        return f"{'/'.join(map(str, sorted(of_tokens)))}-wide tokens"
    return f"{'/'.join(map(str, sorted(set(of_sites))))} wide"
