"""What a failure means. Nothing here knows gRPC: a status is a name and a text."""
