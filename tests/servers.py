"""How the servers of tests are started."""

# A single member elects itself after one election timeout when it comes back; its leases may be as
# short as 1 s.
QUICK = ("--heartbeat-interval=50", "--election-timeout=250")

# Several members on a busy machine would lose their leader all the time with that.
CALM = ("--heartbeat-interval=100", "--election-timeout=600")
