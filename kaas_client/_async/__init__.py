"""The client, written once for asyncio; ``make generate`` makes ``kaas_client._sync``, the same for threads, of it.

What really differs between the two is in ``kaas_client._asyncio`` and ``kaas_client._threads``.
"""
