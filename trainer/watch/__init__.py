"""What a person sees of a run: losses, pictures, measures, the report."""
