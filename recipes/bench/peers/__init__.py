"""Programs that run another project's code in an environment of its own."""
