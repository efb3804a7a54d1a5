"""The small module that the notebooks lean on."""
