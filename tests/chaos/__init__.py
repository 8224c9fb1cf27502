"""What breaks, and what must not: each file is named after what it breaks."""
