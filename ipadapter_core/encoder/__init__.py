"""Image encoders: which there are, which one an adapter needs, and a picture as their pixels."""
