"""What the benchmarks share: a gateway and its peers in processes of their own, alternating rounds, tables."""
