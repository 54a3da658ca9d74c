"""A first config for somebody's pictures: what they are, what the machine has, and what fits both."""
