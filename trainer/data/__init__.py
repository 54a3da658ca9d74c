"""From a data set of the user to the batches of the training loop."""
