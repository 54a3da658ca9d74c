"""Faces: where a picture has them, how they are aligned, and the names of a FaceID LoRA. No model runs here."""
