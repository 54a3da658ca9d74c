"""Training states and adapter files of other programs, brought into the published flat layout."""
