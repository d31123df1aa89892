"""One file a paper, and the protocol that they follow."""
