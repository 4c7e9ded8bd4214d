"""One torch thread: tiny tensors gain nothing from two, and lose much where cores are shared."""

import torch

torch.set_num_threads(1)
