"""The values that answers are made of: immutable, comparable, cheap.

All are copied out of the protobuf messages, which would otherwise keep a whole answer in memory for
one key.
"""
