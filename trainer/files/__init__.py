"""The deliverable: adapter files, what they say about themselves, and who can load them."""
