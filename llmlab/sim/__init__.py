"""A simulated LLM provider: both dialects, real delays, real faults, no key; in process or on a socket."""
