"""Where numbers lie, and which processes compute them.

`sharding` lays parameters out on a mesh by logical axes, `distributed` and
`cluster` find a run's other processes and notice the loss of one.

May import: the top.
"""
