"""What the benchmarks share: cases, agreement of results, timing, the machine, reports."""
