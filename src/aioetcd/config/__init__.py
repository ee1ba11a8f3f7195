"""What a client is told at the start: how it is to reach its cluster."""
