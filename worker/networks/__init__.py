"""Networks by name: architectures, weights files, layers."""
