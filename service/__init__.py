"""The HTTP service: one resident audio language model, one head mask a task."""
