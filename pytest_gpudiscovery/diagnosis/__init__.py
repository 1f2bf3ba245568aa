"""The catalogue of causes (data) and the resolver: one primary cause, the rest are consequences."""
