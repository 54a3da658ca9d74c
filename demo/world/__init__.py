"""The world of the demo's models: what they are taught, and the scripts that make them from nothing."""
