"""What a person types: the command line, a small HTTP client, and the local stack."""
