"""The log: bytes, names, versions and positions. It knows no codec and no aggregate."""
