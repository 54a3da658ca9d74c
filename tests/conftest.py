"""One thread: tiny layers are not worth sharing out, and threads that wait for a busy core cost minutes."""

import os

import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
