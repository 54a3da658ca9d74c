"""Names of tensors: the ones this project works with, and the ones each author publishes."""

import re

USUAL_LAYOUT = "tencent"  # `image_proj.*` and `ip_adapter.*`, as all but the layouts below
XLABS = "XLabs FLUX"
LUCIFER = "Anima LuciferTC"  # and its variants, which have this in front
PE = "Anima PE"  # likewise
PE_GATED = "Anima PE gated"  # of newer versions, where each block has a gate

_XLABS_SITE = re.compile(r"double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)")
# pattern of a published name, what it is here
_CANONICAL: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"adapter_modules\.(.+)"), r"ip_adapter.\1"),  # Kolors and some trainers
    (re.compile(r"ip_adapter_proj_model\.(.+)"), r"image_proj.\1"),
    (_XLABS_SITE, r"ip_adapter.\1.to_\2_ip.\3"),
    (re.compile(r"blocks\.(\d+)\.ip_([kv])_proj\.(weight|bias)"), r"ip_adapter.\1.to_\2_ip.\3"),
    (re.compile(r"blocks\.(\d+)\.(adaln_ip\..+)"), r"ip_adapter.\1.\2"),
    (re.compile(r"shared_ip_([kv])_proj\.(.+)"), r"shared.to_\1_ip.\2"),
    (re.compile(r"((?:siglip_norm|siglip_compressor|ip_self_attn)\..+|null_tokens|ip_centroid)"), r"image_proj.\1"),
    (re.compile(r"resampler\.((?:queries|kv_proj|blocks|out_norm|out)(?:\..+)?)"), r"image_proj.resampler.\1"),
    (re.compile(r"to_([kv])_ip\.(\d+)\.weight"), r"ip_adapter.\2.to_\1_ip.weight"),
    (re.compile(r"ip_gate\.(\d+)"), r"ip_adapter.\1.gate"),
)
# layout, or the start of it: pattern of a name here, what its author publishes
_PUBLISHED: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {
    XLABS: (
        (re.compile(r"image_proj\.(.+)"), r"ip_adapter_proj_model.\1"),
        (
            re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.(weight|bias)"),
            r"double_blocks.\1.processor.ip_adapter_double_stream_\2_proj.\3",
        ),
    ),
    LUCIFER: (
        (re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.(weight|bias)"), r"blocks.\1.ip_\2_proj.\3"),
        (re.compile(r"ip_adapter\.(\d+)\.(adaln_ip\..+)"), r"blocks.\1.\2"),
        (re.compile(r"shared\.to_([kv])_ip\.(.+)"), r"shared_ip_\1_proj.\2"),
        (re.compile(r"image_proj\.(.+)"), r"\1"),
    ),
    PE: (
        (re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight"), r"to_\2_ip.\1.weight"),
        (re.compile(r"ip_adapter\.(\d+)\.gate"), r"ip_gate.\1"),
        (re.compile(r"image_proj\.(.+)"), r"\1"),
    ),
}


def canonical_name(name: str) -> str:
    """The flat name this project works with; one it does not know stays."""
    return _renamed(name, _CANONICAL)


def published_name(name: str, layout: str) -> str:
    """The flat name under which the author of a layout publishes a tensor."""
    rules = next((rules for start, rules in _PUBLISHED.items() if layout.startswith(start)), ())
    return _renamed(name, rules)


def _renamed(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        if match := pattern.fullmatch(name):
            return match.expand(replacement)
    return name
