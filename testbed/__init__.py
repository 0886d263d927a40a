"""What tests and benchmarks share: the real host, small models and adapters in it, real poses."""
