"""The frozen models that an adapter is trained for: one file per family, all that training asks of it."""
