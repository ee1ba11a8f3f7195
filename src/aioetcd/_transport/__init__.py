"""Everything that knows gRPC: connections, calls, streams, errors, background tasks."""

from aioetcd._transport import _fork

_fork.import_grpc()  # before anything else does
