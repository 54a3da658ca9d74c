"""What an IP-Adapter file is, and its arithmetic: pure torch, shared by the ComfyUI nodes and the trainer.

Source of the method: "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models",
arXiv 2308.06721.
"""
