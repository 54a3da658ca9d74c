"""The public nodes, one a file: schema and execute, nothing else."""
