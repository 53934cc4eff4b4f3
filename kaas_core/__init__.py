"""What daemon and client share: the types of a request, its JSON and protobuf forms and their validation; errors; addresses."""

__version__ = "0.1.0"
