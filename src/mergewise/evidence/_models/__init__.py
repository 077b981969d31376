"""Models that run: opened or offloaded, their weights found and replaced, walked layer by layer."""
