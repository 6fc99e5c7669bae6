"""The watch on the store: what changes there, whoever changes it, and what the kernel is told."""
