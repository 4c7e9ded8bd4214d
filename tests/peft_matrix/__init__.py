"""PEFT's own tests of LoRA, run with iLoRA in LoRA's place: `python tests/peft_matrix PEFT`."""
