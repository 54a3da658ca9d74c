"""Names of tensors: the ones this project works with, and the ones each author publishes."""

import re

USUAL_LAYOUT = "tencent"  # `image_proj.*` and `ip_adapter.*`, as all but the layouts below
XLABS = "XLabs FLUX"

_XLABS_SITE = re.compile(r"double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)")
# pattern of a published name, what it is here
_CANONICAL: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"adapter_modules\.(.+)"), r"ip_adapter.\1"),  # Kolors and some trainers
    (re.compile(r"ip_adapter_proj_model\.(.+)"), r"image_proj.\1"),
    (_XLABS_SITE, r"ip_adapter.\1.to_\2_ip.\3"),
)
# layout: pattern of a name here, what its author publishes
_PUBLISHED: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {
    XLABS: (
        (re.compile(r"image_proj\.(.+)"), r"ip_adapter_proj_model.\1"),
        (
            re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.(weight|bias)"),
            r"double_blocks.\1.processor.ip_adapter_double_stream_\2_proj.\3",
        ),
    ),
}


def canonical_name(name: str) -> str:
    """The flat name this project works with; one it does not know stays."""
    return _renamed(name, _CANONICAL)


def published_name(name: str, layout: str) -> str:
    """The flat name under which the author of a layout publishes a tensor."""
    return _renamed(name, _PUBLISHED.get(layout, ()))


def _renamed(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        if match := pattern.fullmatch(name):
            return match.expand(replacement)
    return name
