"""The client for threads: what ``make generate`` makes of ``kaas_client._async``."""
