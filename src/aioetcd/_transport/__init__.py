"""Everything that knows gRPC: connections, calls, streams, errors, background tasks."""
