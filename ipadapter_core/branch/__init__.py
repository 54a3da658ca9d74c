"""The image branch: tokens, their keys and values, attention, masks, and when it acts."""
