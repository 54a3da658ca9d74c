"""Training from the page: `ipadapter train` as a child process. Nothing here imports the trainer."""
