"""One program per contender; each speaks ``benchmarks.engines.wire`` on its standard input and output."""
