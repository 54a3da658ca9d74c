"""References to features under ComfyUI's memory management: pictures, faces, and the models that read them."""
