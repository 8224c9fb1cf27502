"""What is computed, in torch alone: the method of the paper and evidence, and those that they are compared with."""
