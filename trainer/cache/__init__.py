"""Ready-made latents, image features and text embeddings, so that a training step encodes nothing."""
