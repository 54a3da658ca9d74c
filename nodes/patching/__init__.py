"""Image tokens on a model: everything is checked before anything is patched."""
