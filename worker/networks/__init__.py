"""A network by its name: its architecture, its weights as people have them, its layers."""
