"""Programs that run another project's code, each in an environment of that project."""
