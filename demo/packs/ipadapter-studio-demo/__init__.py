"""The demo's workflows as a pack of their own, which ComfyUI's gallery shows as a section; it has no nodes."""

NODE_CLASS_MAPPINGS: dict[str, type] = {}
WEB_DIRECTORY = "web"
