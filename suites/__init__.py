"""The packaged hardware suites: one module per stage, short assertions over stage records."""
