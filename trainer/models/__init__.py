"""The frozen models, the network that learns, and how it sits in the UNet."""
