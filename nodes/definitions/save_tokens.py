"""`IPASaveTokens`: image tokens into a small file that can be kept and shared."""

import os

from comfy_api.latest import io

from ...ipadapter_core.branch.token_file import SUFFIX, save_tokens
from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.errors import BadInputError, shown
from ..arrivals import checked
from ..paths import TOKENS, output_place, writing
from ..sockets import CATEGORY, IPAAdapter, IPATokens, LoadedAdapter, check_origin


class IPASaveTokens(io.ComfyNode):
    """Write tokens to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPASaveTokens",
            display_name="Save IP-Adapter Tokens",
            category=CATEGORY,
            description="Saves image tokens as a small safetensors file, which Load IP-Adapter Tokens finds at once: no "
            "picture and no image encoder is needed then.",
            search_aliases=["save embeds", "save reference", "share reference", "IPAdapter Save Embeds"],
            inputs=[
                IPAAdapter.Input("adapter", tooltip="The adapter that the tokens were made with."),
                IPATokens.Input("tokens", tooltip="Tokens of one or more references."),
                io.String.Input(
                    "filename",
                    default="reference",
                    tooltip="How the file's name begins; a number follows. It goes into ipadapter_tokens in the output "
                    "folder; a folder before the name is made there. Neutral: as is.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, adapter: LoadedAdapter, tokens: ImageTokens, filename: str) -> io.NodeOutput:
        check_origin(tokens, adapter)
        folder, name, subfolder = output_place(os.path.join(TOKENS, _name(filename)))
        file = f"{name}{SUFFIX}"
        with writing(folder / file, "tokens", "filename"):
            save_tokens(folder / file, tokens, adapter.origin, adapter.spec.family)
        return io.NodeOutput(ui={"tokens": [{"filename": file, "subfolder": subfolder, "type": "output"}]})


def _name(filename: str) -> str:
    """A name below the folder of tokens. Raises BadInputError: it leads out of it, or is none."""
    plain = os.path.normpath(filename)
    if not filename.strip() or os.path.isabs(plain) or plain.split(os.sep)[0] in (os.pardir, os.curdir):
        raise BadInputError(
            f"the filename '{shown(filename)}'",
            expected=f"a name, or a folder and a name, below {TOKENS} in ComfyUI's output folder",
            action="choose a name without '..' and without a drive or '/' at its beginning",
        )
    return plain
