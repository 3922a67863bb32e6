"""The processes that compute: requests in, replies out, one at a time. Imports nothing here: the front loads it."""
