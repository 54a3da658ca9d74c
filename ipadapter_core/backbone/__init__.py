"""Base models: where a model's attention sites are and what they are known to carry."""
