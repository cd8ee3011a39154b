"""The masked audio language model: audio in, head masks, tasks, and the models they act on.

Both the service and the training package stand on this one; it imports neither, and no web framework.
"""
