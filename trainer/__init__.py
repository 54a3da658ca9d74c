"""Training of IP-Adapters: from a folder of images to a file that the nodes, other ComfyUI packs and diffusers load."""
