"""Do groups of users agree on a LoRA? `python -m recipes gradients EXPERIMENT`."""
