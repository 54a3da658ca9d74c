"""Adapter files: read, recognised by their tensors, described by an `AdapterSpec`."""
