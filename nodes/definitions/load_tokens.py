"""`IPALoadTokens`: image tokens of a file that Save IP-Adapter Tokens wrote."""

from comfy_api.latest import io

from ...ipadapter_core.branch.token_file import FILE_KIND, read_tokens
from ..arrivals import checked
from ..paths import TOKENS, fingerprint, model_candidates, model_path, token_files
from ..sockets import CATEGORY, IPAAdapter, IPATokens, LoadedAdapter


class IPALoadTokens(io.ComfyNode):
    """Read tokens made with an adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPALoadTokens",
            display_name="Load IP-Adapter Tokens",
            category=CATEGORY,
            description="Loads image tokens from models/ipadapter_tokens or output/ipadapter_tokens. They work with the "
            "adapter they were made with, and need no image encoder.",
            search_aliases=["load embeds", "load reference", "saved reference", "IPAdapter Load Embeds"],
            inputs=[
                IPAAdapter.Input(
                    "adapter", tooltip="The adapter that the tokens were made with, or a copy of its file."
                ),
                io.Combo.Input(
                    "tokens_file",
                    display_name="tokens file",
                    options=token_files(),
                    tooltip="A file of Save IP-Adapter Tokens. Press R after saving, and it stands in the list.",
                ),
            ],
            outputs=[IPATokens.Output("tokens", tooltip="The tokens, for Apply IP-Adapter.")],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: object = None, tokens_file: str | None = None) -> str:
        # ComfyUI gives None for a linked input: any of the files may be meant
        return fingerprint(model_candidates(TOKENS, token_files() if tokens_file is None else [tokens_file]))

    @classmethod
    @checked
    def execute(cls, adapter: LoadedAdapter, tokens_file: str) -> io.NodeOutput:
        path = model_path(TOKENS, tokens_file, FILE_KIND)
        return io.NodeOutput(read_tokens(path, adapter.spec, adapter.origin, adapter.adapter_id))
