"""Bytes over HTTP: transport, retries, connections, answers, multipart, authentication and URLs."""
