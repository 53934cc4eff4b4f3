"""Runs requests on one device: plans, modules, buffers, and the one commit at the end."""
