"""Workflow files as people saved them with IPAdapter_plus: `python -m legacy.make_workflows` in tests/ writes them anew."""
