"""The service and its peers, each behind the same small protocol."""
