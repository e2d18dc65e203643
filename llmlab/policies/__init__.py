"""Policies: layers around a call, each `async (call, inner) -> Reply`. `strategy` puts them in order."""
