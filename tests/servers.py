"""How the servers of tests are started, and where the session's is found."""

import pytest

from aioetcd.testing import EtcdServer

SERVER = pytest.StashKey[EtcdServer]()
"""The session's etcd, in the stash of pytest's config, once a test has asked for it."""

# A single member elects itself after one election timeout when it comes back; its leases may be as
# short as 1 s.
QUICK = ("--heartbeat-interval=50", "--election-timeout=250")

# Several members on a busy machine would lose their leader all the time with that.
CALM = ("--heartbeat-interval=100", "--election-timeout=600")
