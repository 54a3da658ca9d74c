"""`IPAdapterModelLoader`: one file of models/ipadapter."""

from comfy_api.latest import io

from .. import paths
from ..loading import open_adapter
from .arrivals import checked
from .payload import RawAdapter
from .schema import IPAdapterSocket, legacy_schema


class IPAdapterModelLoader(io.ComfyNode):
    """Load an adapter file without an image encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterModelLoader",
            "IPAdapter Model Loader",
            "ipadapter/loaders",
            "Loads an adapter file.",
            native="Load IP-Adapter",
            inputs=[
                io.Combo.Input(
                    "ipadapter_file",
                    options=paths.adapter_files(),
                    tooltip="A file of models/ipadapter. Its kind is read from the tensors, not from its name.",
                )
            ],
            outputs=[IPAdapterSocket.Output(display_name="IPADAPTER", tooltip="The adapter.")],
        )

    @classmethod
    def fingerprint_inputs(cls, ipadapter_file: str | None) -> str:
        return paths.fingerprint(paths.adapter_candidates(ipadapter_file))

    @classmethod
    @checked
    def execute(cls, ipadapter_file: str) -> io.NodeOutput:
        return io.NodeOutput(RawAdapter(open_adapter(ipadapter_file, paths.NONE)))


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterModelLoader,)
