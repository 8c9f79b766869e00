"""Bytes over HTTP: transport, credentials, multipart messages."""
