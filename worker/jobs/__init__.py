"""A slice's life: claimed, asked, committed, handed back. It knows jobs, and of tensors nothing."""
