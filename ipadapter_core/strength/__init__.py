"""How strongly each site takes the image: plain numbers, no tensors."""
