"""What a host must be: name, compute capability, memory, SM count, MIG, ECC; one TOML file each."""
