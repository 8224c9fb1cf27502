"""What the API promises, under many generated, hostile or slow callers."""
