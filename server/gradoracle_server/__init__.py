"""The gradoracle server."""
