"""What runs inside the supervised child: standard library and ctypes only; observe and report, never judge."""
