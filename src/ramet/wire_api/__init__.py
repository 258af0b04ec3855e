"""The public API's types: stdlib dataclasses, light to import, shared by server and client."""
