"""Mutation testing: small changes to the daemon's code, each of which some test should notice. Started by ``make mutation``."""
