"""Rules: what may say "not yet" to a call at the door. They vote; `policies.admit` holds the line."""
