"""One thread: tiny layers are not worth sharing out, and threads that wait for a busy core cost minutes."""

import torch

torch.set_num_threads(1)
