"""What only the nodes of IPAdapter_plus need."""
